"""The commands, code, settings and tables in the README match the package."""

import ast
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest

from fashion_lit import RunDirectory
from fashion_lit.__main__ import COMMANDS
from fashion_lit.api.launch import prepare
from fashion_lit.config.compose import compose_jobs
from fashion_lit.config.groups import CONF_DIR
from fashion_lit.config.overrides import prepare_overrides
from fashion_lit.config.schema import check
from fashion_lit.sweeps.jobs import plan_jobs
from fashion_lit.sweeps.space import check_corners, read_space

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```bash\n(.*?)```", README, flags=re.S)
INLINE = re.findall(r"`(fashion-lit [^`…]+)`", README)
PYTHON = re.findall(r"```python\n(.*?)```", README, flags=re.S)
LINES = [line for block in BLOCKS for line in block.splitlines()] + INLINE
TYPED = sorted({part.strip() for line in LINES for part in re.split(r"&&|\s#\s", line)})
# tests/end_to_end/test_own_parts.py runs those of the section on users' own parts.
OWN_PARTS = README.partition("## Your own parts")[2].partition("## ")[0]
COMMANDS_TYPED = [
    line for line in TYPED if line.startswith("fashion-lit ") and line not in OWN_PARTS
]
SETTINGS = re.findall(
    r"`((?:data|model|trainer|optimizer|launcher|tensorboard)\.[a-z_]+)(?:=[^`]*)?`", README
)
SETTINGS.remove("optimizer.weight_dcay")  # the README's example of a misspelling


def test_readme_has_the_two_set_up_commands() -> None:
    assert "pip install -e . && fashion-lit train\n" in README
    assert 'pip install -e ".[dev]" && pytest\n' in README


@pytest.mark.parametrize("line", COMMANDS_TYPED)
def test_command_parses(line: str, idx_folder: Path, picture_folder: Path) -> None:
    _, command, *arguments = shlex.split(line)
    assert command in COMMANDS
    if command == "search":
        pytest.importorskip("optuna", reason="needs the extra [search]")
        check_corners(*read_space([a for a in arguments if "--" not in a and not a.isdigit()]))
    if command not in ("train", "find-lr"):
        return  # its own tests parse its arguments
    overrides = [argument for argument in arguments if not argument.startswith("--")]
    overrides = [o for o in overrides if o not in ("-m", "job")]
    for choice, folder in (("data=idx", idx_folder), ("data=folder", picture_folder)):
        if choice in overrides:  # small data
            overrides = [o.replace("=FOLDER", f"={folder.as_posix()}") for o in overrides]
            overrides.append("data.batch_size=8")
    multirun = "-m" in arguments or any(text.startswith("sweep=") for text in arguments)
    for job in compose_jobs(prepare_overrides(overrides), multirun=multirun):
        check(job)


def test_group_table_lists_exactly_the_choices() -> None:
    for group in (path for path in CONF_DIR.iterdir() if path.is_dir()):
        (row,) = re.findall(rf"^\| `{group.name}` \| ([^|]*) \|$", README, flags=re.M)
        named = set(re.findall(r"`(\w+)`", row))
        assert named == {path.stem for path in group.glob("*.yaml")}, group.name


def test_module_table_lists_exactly_the_modules() -> None:
    package = Path(__file__).parents[1] / "fashion_lit"
    for folder in (path for path in package.iterdir() if (path / "__init__.py").is_file()):
        (row,) = re.findall(rf"^\| `{folder.name}` \| [^|]* \| (.*) \|$", README, flags=re.M)
        named = {name.rstrip("/") for name in re.findall(r"`([a-z_]+/?)`", row)}
        modules = {path.stem for path in folder.iterdir() if path.suffix in (".py", "")}
        assert named == modules - {"__init__", "__pycache__"}, folder.name


def test_python_code_runs(
    finished_run: RunDirectory, small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    first, swept = re.findall(r"(?:train|sweep)\((\[.*?\])\)", PYTHON[0])
    for job in plan_jobs(
        [*prepare([*small, *ast.literal_eval(swept)], [], multirun=True), "++test=false"],
        tmp_path / "sweeps" / "first",
    ):
        shutil.copytree(finished_run.path, job.run.path)  # finished, so no process starts
    code = "".join(PYTHON).replace(first, f"{first} + {small}").replace(swept, f"{small} + {swept}")
    code = code.replace("model=report_cnn", "model.network.widths=[8,16,32]")
    code = code.replace("runs/…/", f"{finished_run.path.as_posix()}/")
    names: dict[str, Any] = {}
    exec(code, names)
    assert names["run"].config["model"]["network"]["widths"] == [8, 16, 32]
    assert names["run"].config["data"]["name"] == "synthetic"
    assert len(names["runs"]) == 2
    assert names["probabilities"].shape == (8, 10)
    assert names["last"].checkpoint.name == "last.ckpt"


def test_settings_exist() -> None:
    assert SETTINGS
    texts = "".join(file.read_text(encoding="utf-8") for file in CONF_DIR.rglob("*.yaml"))
    for setting in set(SETTINGS):
        group, key = setting.split(".")
        assert re.search(rf"^\s*{key}:", texts, flags=re.M) or group == "trainer", setting
