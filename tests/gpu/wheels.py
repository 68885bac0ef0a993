"""Fetch the wheels that the project needs and the image of a GPU machine lacks.

    fetch_missing(root / "pyproject.toml", root / ".whl")

The constants describe that image.
"""

import email
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterable
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name, parse_wheel_filename

from fashion_lit.errors import UserError

# The image's packages that the project or its requirements require; "" stands for any version. The
# image's typing-extensions is left out, as it may be too old for other packages.
IMAGE = {
    "absl-py": "",
    "contourpy": "",
    "cycler": "",
    "execnet": "",
    "filelock": "",
    "fonttools": "",
    "fsspec": "",
    "grpcio": "",
    "iniconfig": "",
    "jinja2": "",
    "joblib": "",
    "kiwisolver": "",
    "lightning": "2.6.6",
    "lightning-utilities": "",
    "markdown": "",
    "markupsafe": "",
    "matplotlib": "",
    "networkx": "",
    "numpy": "2.5.2",
    "onnx": "1.23.1",
    "onnxruntime": "1.30.0",
    "packaging": "",
    "pandas": "",
    "pillow": "",
    "pluggy": "",
    "protobuf": "",
    "pygments": "",
    "pyparsing": "",
    "pytest": "",
    "pytest-timeout": "",
    "pytest-xdist": "",
    "python-dateutil": "",
    "pytorch-lightning": "2.6.6",
    "pyyaml": "",
    "scikit-learn": "",
    "scipy": "",
    "setuptools": "",
    "six": "",
    "sympy": "",
    "tensorboard": "",
    "tensorboard-data-server": "",
    "threadpoolctl": "",
    "torch": "2.11.0",
    "torchmetrics": "1.9.0",
    "torchvision": "0.26.0",
    "tqdm": "",
    "triton": "3.6.0",
    "werkzeug": "",
}
PYTHON = "3.12"
MARKERS = {
    "python_version": PYTHON,
    "python_full_version": f"{PYTHON}.3",
    "sys_platform": "linux",
    "platform_system": "Linux",
    "platform_machine": "x86_64",
    "os_name": "posix",
    "implementation_name": "cpython",
    "platform_python_implementation": "CPython",
    "extra": "",
}
PLATFORMS = (
    *(f"manylinux_2_{minor}_x86_64" for minor in (28, 27, 17, 24, 31, 34, 35)),
    "manylinux2014_x86_64",
    "manylinux1_x86_64",
)
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet")


def fetch_missing(pyproject: Path, folder: Path) -> list[Path]:
    """Fill `folder` with the wheels of all missing packages, delete other wheels, and return them.

    Raises UserError if the image has a package in a version that does not meet a requirement.
    """
    folder.mkdir(exist_ok=True)
    project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
    kept: dict[str, Path] = {}
    waiting = [Requirement(text) for text in project["dependencies"]]
    while waiting:
        need = waiting.pop(0)
        name = canonicalize_name(need.name)
        if (need.marker and not need.marker.evaluate(MARKERS)) or is_there(name, need):
            continue
        if name not in kept:
            kept[name] = find(name, need, folder) or fetch(name, need, folder)
            waiting += needs_of(kept[name])
        if not fits(kept[name], need):
            raise UserError(
                f"Expected a wheel that meets {need}, but {kept[name].name} was chosen for another "
                "requirement."
            )
    for path in set(folder.glob("*.whl")) - set(kept.values()):
        path.unlink()
    return sorted(kept.values())


def is_there(name: str, need: Requirement) -> bool:
    """Whether the image has a package; raises UserError if its version does not meet `need`."""
    version = IMAGE.get(name)
    if version and not need.specifier.contains(version, prereleases=True):
        raise UserError(f"Expected {need} in the machine's image, but it has {name} {version}.")
    return version is not None


def fits(wheel: Path, need: Requirement) -> bool:
    """Whether a wheel's version meets a requirement."""
    return need.specifier.contains(parse_wheel_filename(wheel.name)[1], prereleases=True)


def named(wheels: Iterable[Path], name: str) -> list[Path]:
    """Return those of `wheels` that belong to a package."""
    return [path for path in wheels if parse_wheel_filename(path.name)[0] == name]


def find(name: str, need: Requirement, folder: Path) -> Path | None:
    """Return a wheel in `folder` that meets a requirement, or None."""
    wheels = named(folder.glob("*.whl"), name)
    return next((path for path in wheels if fits(path, need)), None)


def fetch(name: str, need: Requirement, folder: Path) -> Path:
    """Download a wheel for the machine's Python, or build one if there is only a source package.

    Raises UserError if pip finds none, or if the built wheel is not pure Python.
    """
    asked = f"{need.name}{need.specifier}"
    before = set(folder.glob("*.whl"))
    target = ["--only-binary=:all:", "--python-version", PYTHON, "--implementation", "cp"]
    target += [word for platform in PLATFORMS for word in ("--platform", platform)]
    command = [*PIP, "download", "--no-deps", *target, "--dest", str(folder), asked]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    is_source = done.returncode != 0
    if is_source:
        command = [*PIP, "wheel", "--no-deps", "--wheel-dir", str(folder), asked]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    new = named(set(folder.glob("*.whl")) - before, name)
    if len(new) != 1:
        raise UserError(f"Expected pip to find a wheel of {asked}, but it failed:\n{done.stderr}")
    if is_source and not new[0].name.endswith("-none-any.whl"):
        raise UserError(
            f"Expected a pure Python wheel of {asked}, but pip built {new[0].name}, which may not "
            "run on another machine."
        )
    return new[0]


def needs_of(wheel: Path) -> list[Requirement]:
    """Return the requirements in a wheel's metadata."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (name,) = [n for n in names if n.count("/") == 1 and n.endswith(".dist-info/METADATA")]
        metadata = email.message_from_bytes(archive.read(name))
    return [Requirement(text) for text in metadata.get_all("Requires-Dist") or []]
