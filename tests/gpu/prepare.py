"""Make this checkout ready for check.py on a GPU machine without a network.

python tests/gpu/prepare.py        then run the command that it prints on that machine

Leaves data/ (the four files) and .whl/ (what the machine's image lacks, as `wheels` has it), which
git does not see, and changes no tracked file. The first time it needs a package index.
"""

import argparse
import subprocess
import sys
from pathlib import Path

# The code of this checkout, whichever one is installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from fashion_lit.data.fashion_mnist import FashionMNIST
from fashion_lit.errors import UserError
from wheels import fetch_missing

ROOT = Path(__file__).resolve().parents[2]  # of the checkout
CARRIED = ("data", ".whl")  # beside what git sees
LIMIT = 64  # MiB that can be sent to the machine
INSTALL = (
    "python3 -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir --upgrade "
    "--target .whl/site .whl/*.whl"
)
CHECK = (
    "PYTHONPATH=$PWD/.whl/site PYTHONUNBUFFERED=1 "
    'python3 tests/gpu/check.py --out "${OUT:-gpu_check}"'
)


def main() -> int:
    """Fetch, weigh, tell; returns the exit code."""
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
        "\nOn the machine, in the root of a copy of this checkout that has data/ and .whl/ too, "
        f"within 580 s:\n\n{INSTALL} && {CHECK}"
    )
    return 0


def git(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run git in the checkout."""
    return subprocess.run(
        ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )


def hide(folder: str) -> None:
    """Let git ignore a folder, in this checkout alone, unless it does already."""
    if git("check-ignore", "--quiet", f"{folder}/file").returncode == 0:
        return
    exclude = ROOT / git("rev-parse", "--git-path", "info/exclude").stdout.strip()
    exclude.parent.mkdir(parents=True, exist_ok=True)
    with exclude.open("a", encoding="utf-8") as file:
        file.write(f"/{folder}/\n")


def weigh() -> None:
    """Add up what is sent; raises UserError if it is too much."""
    listed = git("ls-files", "-z", "--cached", "--others", "--exclude-standard").stdout.split("\0")
    files = {"tree": [ROOT / name for name in listed if name]}
    for folder in (*CARRIED, "shared"):  # where a shared/ lies in the checkout, it is sent too
        files[folder] = [p for p in (ROOT / folder).rglob("*") if not p.is_symlink()]
    parts = {
        name: sum(path.stat().st_size for path in paths if path.is_file()) / 2**20
        for name, paths in files.items()
    }
    total = sum(parts.values())
    told = ", ".join(f"{name} {size:.1f}" for name, size in parts.items() if size)
    print(f"to send: {total:.1f} MiB of {LIMIT} ({told})")
    if total > LIMIT:
        raise UserError("That is too much; data/ needs to hold the four .gz files alone.")


if __name__ == "__main__":
    sys.exit(main())
