"""Imports point up the list only, as `README.md` (How it is built) says."""

import ast
from pathlib import Path

import pytest

import fashion_lit

PACKAGE = Path(fashion_lit.__file__).parent
LAYERS = [
    # tensors
    ["__init__", "errors", "explain", "files", "slurm_task", "stopping"],
    ["randomness", "fashion_mnist", "augment", "synthetic", "networks", "device", "quiet"],
    # Lightning
    ["metrics", "optimization"],
    ["scores"],
    ["datamodule"],
    ["classifier", "timing"],
    ["peers", "cnn", "transfer", "callbacks", "checkpoints"],
    ["restart_points", "tensorboard_pages"],
    # runs
    ["run_directory", "report", "pruning", "reference", "curves"],
    ["launchers"],
    ["slurm"],
    ["schema"],
    ["config"],
    ["resuming"],
    ["terminal", "ranking"],
    ["sweep_figures", "narrative", "report_figures"],
    ["build"],
    ["evaluation"],
    ["report_page", "comparison", "loops"],
    ["contests", "whole_runs"],
    # commands
    ["sweep"],
    ["train", "study"],
    ["leaderboard", "search", "evaluate", "benchmark"],
    ["__main__"],
]
LEVEL = {module: level for level, modules in enumerate(LAYERS) for module in modules}
WITHIN = {("synthetic", "fashion_mnist"), ("synthetic", "randomness"), ("networks", "augment")}
WITHIN |= {("networks", "fashion_mnist"), ("networks", "networks")}
FILES = sorted(PACKAGE.rglob("*.py"))


def module_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_modules(path: Path) -> set[str]:
    """The modules of this package that a file imports, also inside functions."""
    names = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
    parts = [name.split(".") for name in names]
    return {p[1] for p in parts if p[0] == "fashion_lit" and len(p) > 1 and p[1] in LEVEL}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_imports_point_up_the_list(path: Path) -> None:
    module = module_of(path)
    assert module in LEVEL, f"{module} stands in no layer"
    for imported in imported_modules(path):
        allowed = LEVEL[imported] < LEVEL[module] or (module, imported) in WITHIN
        assert allowed, f"{module} must not import {imported}"


def test_layers_name_existing_modules_only() -> None:
    assert {module_of(path) for path in FILES} == LEVEL.keys()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_modules_stay_short_and_begin_with_what_they_are(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 300
    assert ast.get_docstring(ast.parse(text))


def test_hydra_is_known_above_the_lightning_layer_only() -> None:
    for path in FILES:
        if LEVEL[module_of(path)] < LEVEL["run_directory"]:
            text = path.read_text(encoding="utf-8")
            assert "import hydra" not in text
            assert "omegaconf" not in text
