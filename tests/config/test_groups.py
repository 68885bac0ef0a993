"""Own configuration directories add groups and choices."""

from pathlib import Path

import pytest

from fashion_lit.commands.train import main
from fashion_lit.config.compose import compose_jobs
from fashion_lit.config.groups import with_config_dirs
from fashion_lit.config.overrides import prepare_overrides
from fashion_lit.config.settings import Config
from fashion_lit.errors import UserError
from fashion_lit.runs.directory import RunDirectory
from fashion_lit.sweeps.space import read_space

FILES = {
    "experiment/mine.yaml": "# @package _global_\ndefaults:\n  - override /model: my_net\n"
    "seed: 7\n",
    "model/my_net.yaml": "name: cnn\nnetwork:\n  name: fast_cnn\n  widths: [8, 8, 8, 8]\n"
    "  activation: relu\n  last_kernel_size: 1\n  early_pool: true\nlabel_smoothing: 0.0\n",
    "sweep/mine.yaml": "optimizer:\n  lr: 0.1,0.2\nmodel: my_net\n",
    "search/mine.yaml": "optimizer.lr: interval(0.1, 0.2)\n",
    "site/here.yaml": "# @package _global_\noutput_root: elsewhere\n",
}


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """A directory with a choice of each kind."""
    for name, text in FILES.items():
        path = tmp_path / "my conf" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return tmp_path / "my conf"


def compose(directory: Path, *overrides: str) -> list[Config]:
    prepared = prepare_overrides(with_config_dirs(overrides, [str(directory)]))
    return compose_jobs(prepared, multirun=True)


def test_own_choices_and_groups_are_composed(mine: Path) -> None:
    (job,) = compose(mine, "experiment=mine", "site=here")
    assert job["model"]["network"]["widths"] == [8, 8, 8, 8]
    assert (job["seed"], job["output_root"]) == (7, "elsewhere")
    jobs = compose(mine, "sweep=mine")
    assert [job["optimizer"]["lr"] for job in jobs] == [0.1, 0.2]
    assert jobs[0]["model"]["network"]["activation"] == "relu"
    space, _ = read_space(with_config_dirs(["space=mine"], [str(mine)]))
    assert list(space) == ["optimizer.lr"]


def test_a_search_path_is_the_same_as_config_dir(mine: Path) -> None:
    typed = with_config_dirs([f'hydra.searchpath=["file://{mine.as_posix()}"]'], [])
    assert typed == with_config_dirs([], [str(mine)])


def test_a_run_records_its_settings_and_resumes_without_the_directory(
    mine: Path, small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = RunDirectory(tmp_path / "run")
    place = f"run_dir={run.path.as_posix()}"
    assert main([*small, "model=my_net", "--config-dir", str(mine), place]) == 0
    assert "my conf" not in run.config_file.read_text(encoding="utf-8")
    assert main([place]) == 0
    assert "is finished" in capsys.readouterr().out


def test_jobs_of_a_sweep_find_own_choices(
    mine: Path, small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = [
        "-cd",
        "my conf",
        "sweep=mine",
        "optimizer.lr=0.1",
        "sweep_name=own",
        "model=my_net",
    ]
    assert main([*small, *arguments]) == 0
    (run,) = (tmp_path / "sweeps" / "own").glob("*-????????/")
    assert RunDirectory(run).config["model"]["network"]["widths"] == [8, 8, 8, 8]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "model/fast_cnn.yaml",
            "name: cnn\n",
            "would not be used, because fashion-lit has a",
        ),
        ("train.yaml", "seed: 1\n", "would not be used, because it is in no group"),
        ("site/there.yaml", "hydra: {run: {dir: x}}\n", "Expected no settings of Hydra in"),
        ("experiment/empty.yaml", "seed: 1\n", "to begin with the line `# @package _global_`"),
    ],
)
def test_files_that_would_not_be_used_are_refused(
    name: str, text: str, message: str, mine: Path
) -> None:
    (mine / name).write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=message):
        with_config_dirs([], [str(mine)])


@pytest.mark.parametrize("text", ["a: [", "- 1", "\x00", "a: &a [*a]"])
def test_a_file_that_is_no_yaml_of_settings_is_refused(
    text: str, mine: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (mine / "sweep" / "mine.yaml").write_text(text, encoding="utf-8")
    (mine / "experiment" / "mine.yaml").write_text(text, encoding="utf-8")
    for choice in ("sweep=mine", "experiment=mine"):
        assert main([choice, "--config-dir", str(mine)]) == 2
        assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("given", ["nowhere", "", "pkg://package.conf"])
def test_a_directory_without_groups_is_refused(
    given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="Expected"):
        with_config_dirs([], [given])
