"""Prepare this checkout for check.py on a GPU machine without a network.

python tests/gpu/prepare.py        then run the command that it prints on that machine

Creates data/ (the four data files) and .whl/ (the wheels that the machine's image lacks, according
to wheels.py). Git ignores both, and no tracked file changes. The first run needs a package index.
"""

import argparse
import subprocess
import sys
from pathlib import Path

# Import the code of this checkout, even if another one is installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from fashion_lit.data.sources.fashion_mnist import FashionMNIST
from fashion_lit.errors import UserError
from wheels import fetch_missing

ROOT = Path(__file__).resolve().parents[2]  # the checkout's root
CARRIED = ("data", ".whl")  # folders sent in addition to the files that git does not ignore
LIMIT = 64  # greatest total size that can be sent to the machine, in MiB
INSTALL = (
    "python3 -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir --upgrade "
    "--target .whl/site .whl/*.whl"
)
CHECK = (
    "PYTHONPATH=$PWD/.whl/site PYTHONUNBUFFERED=1 "
    'python3 tests/gpu/check.py --out "${OUT:-gpu_check}"'
)


def main() -> int:
    """Fetch the data and wheels, check the size and print the command; returns the exit code."""
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    try:
        FashionMNIST(root=str(ROOT / "data")).prepare()
        for folder in CARRIED:
            hide(folder)
        wheels = fetch_missing(ROOT / "pyproject.toml", ROOT / ".whl")
        print("wheels:", ", ".join(path.name for path in wheels))
        weigh()
    except UserError as error:
        print(f"prepare.py: {error}", file=sys.stderr)
        return 2
    print(
        "\nRun this on the machine, in the root of a copy of this checkout with data/ and .whl/; "
        f"it takes up to 580 s:\n\n{INSTALL} && {CHECK}"
    )
    return 0


def git(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run git in the checkout."""
    return subprocess.run(
        ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )


def hide(folder: str) -> None:
    """Make git ignore a folder in this checkout (info/exclude), unless it already does."""
    if git("check-ignore", "--quiet", f"{folder}/file").returncode == 0:
        return
    exclude = ROOT / git("rev-parse", "--git-path", "info/exclude").stdout.strip()
    exclude.parent.mkdir(parents=True, exist_ok=True)
    with exclude.open("a", encoding="utf-8") as file:
        file.write(f"/{folder}/\n")


def weigh() -> None:
    """Print the size of what is sent; raises UserError if it exceeds LIMIT."""
    listed = git("ls-files", "-z", "--cached", "--others", "--exclude-standard").stdout.split("\0")
    files = {"tree": [ROOT / name for name in listed if name]}
    for folder in (*CARRIED, "shared"):  # a shared/ in the checkout is sent, too
        files[folder] = [p for p in (ROOT / folder).rglob("*") if not p.is_symlink()]
    parts = {
        name: sum(path.stat().st_size for path in paths if path.is_file()) / 2**20
        for name, paths in files.items()
    }
    total = sum(parts.values())
    sizes = ", ".join(f"{name} {size:.1f}" for name, size in parts.items() if size)
    print(f"to send: {total:.1f} of at most {LIMIT} MiB ({sizes})")
    if total > LIMIT:
        raise UserError(
            f"Expected at most {LIMIT} MiB to send, but got {total:.1f} MiB; data/ needs only the "
            "four .gz files."
        )


if __name__ == "__main__":
    sys.exit(main())
