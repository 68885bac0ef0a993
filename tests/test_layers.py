"""The house: eight packages in a row, each importing only from those above it."""

import ast
import os
import subprocess
import sys
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import fashion_lit
from fashion_lit.__main__ import COMMANDS

PACKAGE = Path(fashion_lit.__file__).parent
# From the top down, as in the README's "How it is built".
GROUND = ("__init__", "errors", "files", "text")  # what everything stands on
PACKAGES = (
    "data",
    "evaluation",
    "models",
    "config",
    "runs",
    "training",
    "sweeps",
    "benchmarking",
)
FLOORS = ["ground", *PACKAGES, "commands"]
FILES = sorted(PACKAGE.rglob("*.py"))
NAMES = [path.relative_to(PACKAGE).as_posix() for path in FILES]


def module_of(path: Path) -> str:
    """The dotted name within the package: "data.augment"; "data" for data/__init__.py."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)


MODULES = {module_of(path) for path in FILES}


def floor_of(module: str) -> str:
    first = module.split(".")[0]
    if first in PACKAGES:
        return first
    return "ground" if first in GROUND else "commands"


@cache
def imports_of(path: Path) -> frozenset[str]:
    """The modules of this package that a file imports, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, "imports are absolute"
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        own = [n.removeprefix("fashion_lit.") for n in names if n.startswith("fashion_lit.")]
        found |= set(own) & MODULES
    return frozenset(found - {module_of(path)})


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_imports_point_up(path: Path) -> None:
    floor = FLOORS.index(floor_of(module_of(path)))
    for module in imports_of(path):
        assert FLOORS.index(floor_of(module)) <= floor, f"{path} must not import {module}"


def test_no_module_imports_itself_through_others() -> None:
    graph = {module_of(path): imports_of(path) - set(PACKAGES) for path in FILES}
    list(TopologicalSorter(graph).static_order())  # raises CycleError, naming the circle


def test_there_are_as_many_rooms_as_the_readme_says() -> None:
    folders = {p.name for p in PACKAGE.iterdir() if p.is_dir() and p.name != "__pycache__"}
    assert folders - {"conf"} == set(PACKAGES)
    assert len(list(PACKAGE.glob("*.py"))) <= 10
    for package in PACKAGES:
        assert len(list((PACKAGE / package).glob("*.py"))) <= 13, package
    commands = {p.stem for p in PACKAGE.glob("*.py")} - {*GROUND, "__main__"}
    assert commands == set(COMMANDS)


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_modules_are_short_and_begin_with_what_they_are(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 300
    assert ast.get_docstring(ast.parse(text))


def test_hydra_is_known_where_settings_are_composed_alone() -> None:
    for path in FILES:
        if floor_of(module_of(path)) in ("ground", "data", "evaluation", "models", "training"):
            text = path.read_text(encoding="utf-8")
            assert "import hydra" not in text
            assert "from hydra" not in text
            assert "omegaconf" not in text


WITHOUT = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "lightning", "torchvision", "hydra"):
            raise ImportError(f"{name} is not wanted here")

sys.meta_path.insert(0, Refuse())
"""


def run_without_torch(code: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run Python where torch, lightning, torchvision and Hydra cannot be imported."""
    command = [sys.executable, "-c", WITHOUT + code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ)


@pytest.mark.parametrize(
    "module", ["fashion_lit", "fashion_lit.__main__", "fashion_lit.leaderboard"]
)
def test_what_needs_no_torch_imports_none(module: str) -> None:
    done = run_without_torch(f"import {module}")
    assert done.returncode == 0, done.stderr


def test_the_public_names_can_be_imported() -> None:
    for name in fashion_lit.__all__:
        assert getattr(fashion_lit, name).__name__ == name
    assert set(fashion_lit.__all__) <= set(dir(fashion_lit))
    with pytest.raises(AttributeError, match="has no attribute 'Nothing'"):
        _ = fashion_lit.Nothing
