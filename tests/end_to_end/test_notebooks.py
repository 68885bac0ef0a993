"""Every notebook runs in a new kernel on synthetic data, and is committed without outputs."""

import time
from pathlib import Path

import nbformat
import pytest
from jupyter_client.manager import start_new_kernel
from nbclient import NotebookClient

from fashion_lit.runs.directory import RunDirectory

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


@pytest.mark.long
@pytest.mark.parametrize("prefix", ["", "import asyncio; await asyncio.sleep(0); "])
def test_an_interrupted_kernel_saves_and_resumes(
    prefix: str, tmp_path: Path, small: list[str]
) -> None:
    run = RunDirectory(tmp_path / "run")
    overrides = [*small, "trainer.max_epochs=1000", f"run_dir={run.path.as_posix()}", "test=false"]
    manager, client = start_new_kernel()
    try:
        client.execute(f"{prefix}import fashion_lit; fashion_lit.train({overrides})")
        deadline = time.monotonic() + 60
        while not run.last_checkpoint.exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        manager.interrupt_kernel()
        stopped = client.get_shell_msg(timeout=60)["content"]
        assert stopped["ename"] == "KeyboardInterrupt"
        assert stopped["evalue"] == "stopped by SIGINT"
        assert run.status["state"] == "interrupted"
        step = run.status["step"]
        client.execute(f"fashion_lit.train([{overrides[-2]!r}])")  # in the same kernel
        while run.status["step"] == step:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        manager.interrupt_kernel()
        assert client.get_shell_msg(timeout=60)["content"]["ename"] == "KeyboardInterrupt"
        assert run.status["step"] > step
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
