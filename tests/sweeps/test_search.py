"""Searches: their space, studies shared by several processes, and trials of killed processes."""

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from fashion_lit.commands.leaderboard import main as leaderboard
from fashion_lit.commands.search import main
from fashion_lit.config.groups import CONF_DIR, SPACES, parse_override
from fashion_lit.config.overrides import prepare_overrides
from fashion_lit.errors import UserError
from fashion_lit.runs.directory import RunDirectory
from fashion_lit.sweeps.optuna_internals import trial_id
from fashion_lit.sweeps.pruning import STUDY_FILE, load_study
from fashion_lit.sweeps.space import check_corners, distribution, read_space
from fashion_lit.sweeps.study import make_sampler

optuna = pytest.importorskip("optuna", reason="needs the extra [search]")
posix_only = pytest.mark.skipif(os.name == "nt", reason="Windows has no process groups to kill")


@pytest.fixture
def search(tmp_path: Path, small: list[str]) -> list[str]:
    """Return the arguments of a search whose trials take seconds."""
    place = [f"output_root={tmp_path.as_posix()}", "sweep_name=s"]
    return [*small, *place, "model.network.widths=[8,16,32]", "trainer.max_epochs=2"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("optimizer.lr=interval(0.1,0.5)", "FloatDistribution(high=0.5, log=False, low=0.1"),
        ("optimizer.lr=tag(log,interval(0.1,1))", "FloatDistribution(high=1.0, log=True, low=0.1"),
        ("seed=int(interval(1,9))", "IntDistribution(high=9, log=False, low=1, step=1)"),
        ("seed=range(1,9,2)", "IntDistribution(high=7, log=False, low=1, step=2)"),
        ("data.batch_size=64,128", "CategoricalDistribution(choices=('64', '128'))"),
        ("augment=choice(none,flip_shift)", "CategoricalDistribution(choices=('none', 'flip_"),
    ],
)
def test_hydras_sweeps_become_distributions(text: str, expected: str) -> None:
    assert str(distribution(parse_override(text))).startswith(expected)


@pytest.mark.parametrize("path", sorted((CONF_DIR / SPACES).glob("*.yaml")), ids=lambda p: p.stem)
def test_every_space_can_be_searched_and_starts_with_its_command(path: Path) -> None:
    assert path.read_text(encoding="utf-8").startswith(f"# fashion-lit search space={path.stem}")
    space, fixed = read_space([f"space={path.stem}", "optimizer.lr=0.3"])
    assert "optimizer.lr" not in space  # the typed value replaces it
    check_corners(space, fixed)


@pytest.mark.parametrize(
    "text",
    ["data=synthetic,fashion_mnist", "data.num_train=400,500", "data.drawing_seed=range(0,3)"],
)
def test_what_decides_the_images_is_not_searched(text: str) -> None:
    with pytest.raises(UserError, match=r"Expected trials on the same data, but `data") as raised:
        read_space(["optimizer.lr=interval(0.1,1)", text])
    assert "\n" not in str(raised.value)
    for other in ("data.image_size=28,32", "data.val_size=100,200", "data.class_sampling=null"):
        read_space(["optimizer.lr=interval(0.1,1)", other])


def test_drawn_values_depend_on_the_seed_and_earlier_trials() -> None:
    space = {"x": optuna.distributions.FloatDistribution(0, 1)}

    def draw(name: str, *keys: int) -> float:
        study = optuna.create_study(sampler=make_sampler(name, *keys))
        return study.ask(space).params["x"]

    for name in ("tpe", "random"):
        values = [draw(name, 0, 0), draw(name, 0, 1), draw(name, 1, 0)]
        assert len(set(values)) == 3
        assert draw(name, 0, 0) == values[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Expected a setting to search, such as space=lr_batch_size"),
        (["space=lr"], "Expected `space` to be one of adamw, architecture, lr_batch_size"),
        (["optimizer.lr=tag(log,interval(-1,1))"], "to be a range that can be searched"),
        (["optimizer.lrr=1,2"], "Unknown setting `optimizer.lrr`"),
        (["seed=1,2", "test=true"], "Expected `test` to be false"),
        (["seed=1,2", "launcher=slurm"], "on a cluster, run this command with the same"),
        (
            ["seed=1,2", "--num-trials", "0"],
            "`--num-trials` to be a whole number of at least",
        ),
    ],
)
def test_bad_arguments_end_in_one_sentence(
    arguments: list[str], message: str, search: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*search, *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize("name", ["a%20b", "a%2Fb", "ü #1", *([] if os.name == "nt" else ["a?b"])])
def test_a_study_is_in_the_file_that_is_named(name: str, tmp_path: Path) -> None:
    path = tmp_path / name / "study.db"
    path.parent.mkdir()
    load_study(path, "none").set_user_attr("x", 1)
    assert path.is_file()
    assert [p.name for p in tmp_path.iterdir()] == [name]
    assert load_study(path, "none").user_attrs == {"x": 1}


def test_a_study_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "study.db").write_text("no database" * 100)
    with pytest.raises(UserError, match=r"Expected the study of a search, but .*study\.db"):
        load_study(tmp_path / "study.db", "none")


def test_a_space_is_no_group_of_a_run() -> None:
    with pytest.raises(UserError, match="run fashion-lit search space=adamw"):
        prepare_overrides(["search=adamw"])


def test_bad_trial_is_pruned_and_marked_and_another_space_refused(
    tmp_path: Path, search: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*search, "optimizer.lr=1e-9,2e-9", "--num-trials"]
    sweep_dir = tmp_path / "sweeps" / "s"
    assert main([*arguments, "1"]) == 0  # the first trial has none to be compared with
    study = load_study(sweep_dir / STUDY_FILE, "median")
    (first,) = study.trials
    (run,) = (RunDirectory(path) for path in sweep_dir.glob("trial_0000-*/"))
    assert first.value == run.metrics["val/accuracy"]
    assert list(first.intermediate_values) == [1, 2]
    for _ in range(5):
        known = optuna.create_trial(
            value=0.99,
            params=first.params,
            distributions=first.distributions,
            intermediate_values={1: 0.98, 2: 0.99},
        )
        study.add_trial(known)
    for path in sweep_dir.glob("trial_0000-*/"):
        path.rename(sweep_dir / "elsewhere")  # so that the same settings are trained again
    assert main([*arguments, "7"]) == 0
    assert [t.state.name for t in study.trials] == ["COMPLETE"] * 6 + ["PRUNED"]
    (run,) = (RunDirectory(path) for path in sweep_dir.glob("trial_0006-*/"))
    assert (run.status["state"], run.status["reason"]) == ("pruned", "after epoch 1 of 2")
    capsys.readouterr()
    assert leaderboard([str(sweep_dir)]) == 0
    assert "pruned (after epoch 1 of 2)" in capsys.readouterr().out

    assert main([*search, "optimizer.lr=1e-9,3e-9"]) == 2
    assert "Expected the space that this search began with" in capsys.readouterr().err


@posix_only
def test_two_processes_share_a_study_and_finish_a_killed_ones_trials(
    tmp_path: Path, search: list[str]
) -> None:
    num_trials = 4
    arguments = [*search, "optimizer.lr=tag(log,interval(1e-3,1e-1))", "checkpoint.every_steps=1"]
    command = [sys.executable, "-m", "fashion_lit", "search", *arguments, "--pruner", "none"]
    command += ["--num-trials", str(num_trials)]
    sweep_dir = tmp_path / "sweeps" / "s"
    processes = [
        subprocess.Popen(
            command, start_new_session=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
        for _ in range(2)
    ]
    while len(list(sweep_dir.glob("trial_*/checkpoints/last.ckpt"))) < 2:
        assert all(process.poll() is None for process in processes)
        time.sleep(0.05)
    for process in processes:  # the search and its trial
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    study = load_study(sweep_dir / STUDY_FILE, "none")
    begun = Counter(trial.state.name for trial in study.trials)
    assert begun["RUNNING"] >= 1
    assert sum(begun.values()) < num_trials
    subprocess.run(command, check=True)
    trials = study.trials
    assert [trial.state.name for trial in trials] == ["COMPLETE"] * num_trials
    folders = [list(sweep_dir.glob(f"trial_{t.number:04}-*/")) for t in trials]
    assert all(len(found) == 1 for found in folders)
    assert len(list(sweep_dir.glob("trial_*/"))) == num_trials
    for trial, (folder,) in zip(trials, folders, strict=True):
        run = RunDirectory(folder)
        assert run.config["optimizer"]["lr"] == trial.params["optimizer.lr"]
        assert run.metrics["val/accuracy"] == trial.value


def test_optuna_has_the_private_attribute_that_is_used() -> None:
    optuna = pytest.importorskip("optuna", reason="needs the extra [search]")
    study = optuna.create_study()
    trial = study.ask()
    again = optuna.Trial(study, trial_id(study.trials[0]))
    assert (again.number, trial_id(again)) == (trial.number, trial_id(trial))
