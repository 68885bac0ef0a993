"""Every notebook runs in a new kernel on synthetic data, and is committed without outputs."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_executes(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:  # the other notebooks use synthetic data by default
        cell.source = cell.source.replace('DATA = "fashion_mnist"', 'DATA = "synthetic"')
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": path.parent}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert [output for output in outputs if "image/png" in output.get("data", {})]
    printed = "".join(output["text"] for output in outputs if output.output_type == "stream")
    assert not set("\r\x1b") & set(printed), "no bar fills the cell, no escape moves the cursor"
    assert not [output for output in outputs if output.get("name") == "stderr"], printed


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_stripped(path: Path) -> None:
    for cell in nbformat.read(path, as_version=4).cells:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None
        assert "def " not in cell.source


def test_there_are_notebooks() -> None:
    assert NOTEBOOKS
