"""The layers: ten packages in order, each importing only from itself and those before it."""

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
# In the order of the table in the README's "How it is built".
BASE_MODULES = ("__init__", "errors", "files", "text")  # every package may import them
PACKAGES = (
    "parts",
    "data",
    "evaluation",
    "models",
    "config",
    "runs",
    "training",
    "sweeps",
    "benchmarking",
    "api",
    "commands",
)
LAYERS = ["base", *PACKAGES, "__main__"]
FILES = sorted(PACKAGE.rglob("*.py"))
NAMES = [path.relative_to(PACKAGE).as_posix() for path in FILES]


def module_of(path: Path) -> str:
    """Return the dotted name within the package: "data.augment"; "data" for data/__init__.py."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)


MODULES = {module_of(path) for path in FILES}


def layer_of(module: str) -> str:
    first = module.split(".")[0]
    if first in PACKAGES:
        return first
    return "base" if first in BASE_MODULES else first


@cache
def imports_of(path: Path) -> frozenset[str]:
    """Return the modules of this package that a file imports, including inside functions."""
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
def test_modules_import_only_from_their_own_and_earlier_layers(path: Path) -> None:
    layer = LAYERS.index(layer_of(module_of(path)))
    for module in imports_of(path):
        assert LAYERS.index(layer_of(module)) <= layer, f"{path} must not import {module}"


def test_imports_have_no_cycles() -> None:
    graph = {module_of(path): imports_of(path) - set(PACKAGES) for path in FILES}
    list(TopologicalSorter(graph).static_order())  # raises CycleError with the cycle


def test_packages_and_commands_are_those_listed_in_the_readme() -> None:
    folders = {p.name for p in PACKAGE.iterdir() if p.is_dir() and p.name != "__pycache__"}
    assert folders - {"conf"} == set(PACKAGES)
    assert {p.stem for p in PACKAGE.glob("*.py")} == {*BASE_MODULES, "__main__"}
    for package in PACKAGES:
        assert len(list((PACKAGE / package).glob("*.py"))) <= 13, package
    commands = {p.stem for p in (PACKAGE / "commands").glob("*.py")} - {"__init__"}
    assert commands == {name.replace("-", "_") for name in COMMANDS}


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_modules_are_short_and_have_docstrings(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 300
    assert ast.get_docstring(ast.parse(text))


def test_lower_layers_and_training_do_not_import_hydra() -> None:
    for path in FILES:
        if layer_of(module_of(path)) in ("base", "data", "evaluation", "models", "training"):
            text = path.read_text(encoding="utf-8")
            assert "import hydra" not in text
            assert "from hydra" not in text
            assert "omegaconf" not in text


WITHOUT = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "lightning", "torchvision", "hydra"):
            raise ImportError(f"{name} must not be imported")

sys.meta_path.insert(0, Refuse())
"""


def run_without_torch(code: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run Python with torch, lightning, torchvision and Hydra blocked from import."""
    command = [sys.executable, "-c", WITHOUT + code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ)


@pytest.mark.parametrize(
    "module", ["fashion_lit", "fashion_lit.__main__", "fashion_lit.commands.leaderboard"]
)
def test_light_modules_do_not_import_torch_or_hydra(module: str) -> None:
    done = run_without_torch(f"import {module}")
    assert done.returncode == 0, done.stderr


def test_the_public_names_can_be_imported() -> None:
    for name in fashion_lit.__all__:
        assert getattr(fashion_lit, name).__name__ == name
    assert set(fashion_lit.__all__) <= set(dir(fashion_lit))
    with pytest.raises(AttributeError, match="has no attribute 'Nothing'"):
        _ = fashion_lit.Nothing
