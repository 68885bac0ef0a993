"""Multiruns: the same command finds every job's directory again."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from fashion_lit.commands.leaderboard import main as leaderboard
from fashion_lit.commands.train import main
from fashion_lit.config.overrides import prepare_overrides
from fashion_lit.runs.directory import RunDirectory, quote_command
from fashion_lit.sweeps.jobs import fingerprint, plan_jobs

posix_only = pytest.mark.skipif(os.name == "nt", reason="Windows has no process groups to kill")
COMMAND = [sys.executable, "-m", "fashion_lit", "train", "-m"]
CLOCKS = ("seconds", "train/images_per_second")
LOGS = ("optimizer.lr=1e", "optimizer.lr=0.01")


def plan(sweep_dir: Path, *overrides: str) -> dict[str, Path]:
    """Plan a sweep: {folder name: path}."""
    jobs = plan_jobs(prepare_overrides(overrides), sweep_dir)
    return {job.run.path.name: job.run.path for job in jobs}


def test_fingerprint_depends_only_on_settings_that_can_change_the_result() -> None:
    config = {"seed": 0, "test": True, "optimizer": {"lr": 1}, "data": {"root": None}}
    same = {"test": False, "data": {"root": "x"}, "optimizer": {"lr": 1.0}, "seed": 0}
    assert fingerprint(config) == fingerprint(same)
    assert re.fullmatch("[0-9a-f]{8}", fingerprint(config))
    for other in ({"seed": 1}, {"optimizer": {"lr": 1.5}}, {"data": {"root": None, "size": 2}}):
        assert fingerprint(config | other) != fingerprint(config)


def test_the_images_device_is_part_of_a_fingerprint() -> None:
    def of(device: str) -> str:
        return fingerprint({"seed": 0, "data": {"device": device}})

    assert len({of("auto"), of("cpu"), of("cuda")}) == 3  # it draws the augmentation
    assert of("auto") == fingerprint({"seed": 0})  # as in sweeps of earlier versions


def test_jobs_are_named_by_varied_settings_and_a_fingerprint(tmp_path: Path) -> None:
    names = plan(tmp_path, "optimizer.lr=0.1,0.2", "data.batch_size=64,128", "seed=3")
    assert len(names) == 4
    assert any(
        re.fullmatch(r"optimizer\.lr=0\.1,data\.batch_size=64-[0-9a-f]{8}", n) for n in names
    )


def test_jobs_of_equal_configurations_are_merged(tmp_path: Path) -> None:
    assert len(plan(tmp_path, "optimizer.lr=0.15,0.150,1.5e-1")) == 1
    assert len(plan(tmp_path, "model=fast_cnn,report_cnn", "model=fast_cnn")) == 1


def test_jobs_are_found_again_when_other_settings_vary(tmp_path: Path) -> None:
    before = plan(tmp_path, "optimizer.lr=0.1,0.2")
    for path in before.values():
        path.mkdir()
    more_values = plan(tmp_path, "optimizer.lr=0.05,0.1,0.2")
    assert before.items() < more_values.items()
    more_seeds = plan(tmp_path, "optimizer.lr=0.1,0.2", "seed=0,1")
    assert before.items() < more_seeds.items()  # seed 0 was the default
    assert plan(tmp_path, "optimizer.lr=0.2").items() < before.items()
    other = plan(tmp_path, "optimizer.lr=0.1,0.2", "trainer.max_epochs=3")
    assert not before.keys() & other.keys()


def test_folder_names_suit_every_file_system(tmp_path: Path) -> None:
    (name,) = plan(tmp_path, "data.root=a/b:c?,a/b:c?")
    assert re.fullmatch(r"data\.root=a_b__c_-[0-9a-f]{8}", name)


def sweep_in(folder: Path, small: list[str]) -> list[str]:
    """Return the arguments of a sweep of two jobs that take seconds."""
    place = [f"output_root={folder.as_posix()}", "sweep_name=s"]
    return [*small, *place, "model.network.widths=[8,16,32]", "optimizer.lr=0.01,0.02"]


@pytest.fixture
def sweep(tmp_path: Path, small: list[str]) -> list[str]:
    """The arguments of a sweep of two jobs that take seconds."""
    return sweep_in(tmp_path, small)


@pytest.fixture(scope="module")
def finished_sweep(tmp_path_factory: pytest.TempPathFactory, small: list[str]) -> Path:
    """The directory of this sweep after it has run; not to be changed."""
    folder = tmp_path_factory.mktemp("sweep")
    assert main(["-m", *sweep_in(folder, small)]) == 0
    return folder / "sweeps" / "s"


@pytest.fixture
def sweep_copy(finished_sweep: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may change, where `sweep` would run."""
    return Path(shutil.copytree(finished_sweep, tmp_path / "sweeps" / "s"))


def runs_of(directory: Path) -> dict[str, RunDirectory]:
    return {path.parent.name: RunDirectory(path.parent) for path in directory.glob("*/config.yaml")}


def test_finished_jobs_are_skipped_new_ones_added_and_none_is_lost(
    tmp_path: Path, sweep: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["-m", *sweep]) == 0
    out = capfd.readouterr().out
    assert "sweep_name=s" in out  # the command that continues the sweep
    directory = tmp_path / "sweeps" / "s"
    assert quote_command("fashion-lit", "leaderboard", str(directory)) in out
    assert not re.search("accuracy .* test", out)
    runs = runs_of(tmp_path / "sweeps" / "s")
    assert len(runs) == 2
    assert all("test/accuracy" not in run.metrics for run in runs.values())
    before = {name: run.metrics_file.stat().st_mtime_ns for name, run in runs.items()}

    assert main(["-m", *sweep[:-1], "optimizer.lr=0.02,0.03"]) == 0
    out = capfd.readouterr().out
    assert out.count("(finished before)") == 1
    runs = runs_of(tmp_path / "sweeps" / "s")
    assert len(runs) == 3
    after = {name: run.metrics_file.stat().st_mtime_ns for name, run in runs.items()}
    assert before.items() < after.items()


@pytest.mark.parametrize("launcher", ["local", "parallel"])
def test_a_failing_job_does_not_stop_the_others_and_each_has_a_line_and_a_log(
    launcher: str, tmp_path: Path, small: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = [*small, f"output_root={tmp_path.as_posix()}", "sweep_name=s"]
    arguments += ["optimizer.lr=1e25,0.01"]  # the first diverges
    assert main(["-m", *arguments, f"launcher={launcher}"]) == 1
    out = capfd.readouterr().out
    (failed,), (done,) = ((tmp_path / "sweeps" / "s").glob(f"{p}*.log") for p in LOGS)
    assert "Expected finite losses" in failed.read_text()
    assert "train loss" in done.read_text()
    first, *lines = out[: out.index("\nval acc %")].splitlines()
    assert first == f"Each job writes its output to JOB.log in {failed.parent}"
    assert len(lines) == 3  # one for each job, and the reason
    lines.sort(key=lambda line: line.startswith("finished"))  # parallel jobs end in any order
    assert re.fullmatch(r"failed +\d+ s  job 1 of 2: optimizer\.lr=1e.*", lines[0])
    assert re.fullmatch(rf"  Expected finite losses .* \(see {re.escape(str(failed))}\)", lines[1])
    assert re.fullmatch(r"finished +[\d.]+ % +\d+ s  job 2 of 2: optimizer\.lr=0\.01.*", lines[2])
    best, worst = out[out.index("val acc %") :].splitlines()[1:3]
    assert "finished" in best
    assert "failed" in worst
    assert "Expected finite losses" in worst


def test_a_verbose_sweep_shows_the_whole_output(
    tmp_path: Path, sweep: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["-m", *sweep, "launcher.verbose=true", "optimizer.lr=0.01"]) == 0
    out = capfd.readouterr().out
    assert "=== job 1 of 1: " in out
    assert "train loss" in out
    assert not list((tmp_path / "sweeps" / "s").glob("*.log"))
    assert main(["-m", *sweep, "launcher=parallel", "launcher.verbose=true"]) == 2
    assert "Unknown setting `launcher.verbose`" in capfd.readouterr().err


@posix_only
def test_ctrl_c_stops_the_sweep_and_the_same_command_continues_it(
    tmp_path: Path, sweep: list[str]
) -> None:
    log = (tmp_path / "log").open("w")
    arguments = [*sweep, "trainer.max_epochs=30"]
    process = subprocess.Popen(
        [*COMMAND, *arguments], stdout=log, stderr=log, start_new_session=True
    )
    directory = tmp_path / "sweeps" / "s"
    while not list(directory.glob("*/checkpoints/last.ckpt")):
        assert process.poll() is None, (tmp_path / "log").read_text()
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(timeout=120) == 130
    text = (tmp_path / "log").read_text()
    assert "To continue the sweep:\n  fashion-lit train " in text
    assert "job 2 of 2" not in text
    (run,) = runs_of(directory).values()
    assert run.status["state"] == "interrupted"


def kill_and_repeat(tmp_path: Path, arguments: list[str], num_kills: int, seed: int) -> None:
    """Kill a sweep's process group at random times, finish it, compare with an unkilled sweep."""
    draw = random.Random(seed)
    whole, killed = (tmp_path / name for name in ("whole", "killed"))
    began = time.monotonic()
    subprocess.run([*COMMAND, *arguments, f"output_root={whole.as_posix()}"], check=True)
    duration = time.monotonic() - began
    command = [*COMMAND, *arguments, f"output_root={killed.as_posix()}"]
    for _ in range(num_kills):
        process = subprocess.Popen(command, start_new_session=True)
        time.sleep(draw.uniform(0.2, 0.6) * duration / num_kills * 2)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    finished = {
        name: run.metrics_file.stat().st_mtime_ns
        for name, run in runs_of(killed / "sweeps" / "s").items()
        if run.status.get("state") == "finished"
    }
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert done.stdout.count("finished before") == len(finished)
    runs, expected = (runs_of(place / "sweeps" / "s") for place in (killed, whole))
    assert runs.keys() == expected.keys()
    for name, run in runs.items():
        assert run.status["state"] == "finished"
        if name in finished:
            assert run.metrics_file.stat().st_mtime_ns == finished[name]  # not repeated
        states = [torch.load(r.last_checkpoint)["state_dict"] for r in (run, expected[name])]
        assert all(torch.equal(states[0][key], states[1][key]) for key in states[1])
        for key, value in expected[name].metrics.items():
            assert key in CLOCKS or run.metrics[key] == value, key


@posix_only
def test_killed_sweep_ends_like_an_uninterrupted_one(tmp_path: Path, sweep: list[str]) -> None:
    arguments = [text for text in sweep if not text.startswith("output_root")]
    kill_and_repeat(tmp_path, [*arguments, "checkpoint.every_steps=1"], num_kills=1, seed=0)


@posix_only
@pytest.mark.long
def test_sweep_of_nine_killed_three_times(tmp_path: Path, sweep: list[str]) -> None:
    gone = ("output_root", "optimizer.lr", "data.batch_size")
    arguments = [text for text in sweep if not text.startswith(gone)]
    arguments += ["optimizer.lr=0.01,0.02,0.04", "data.batch_size=25,50,100"]
    settings = ["checkpoint.every_steps=2", "trainer.max_epochs=3"]
    kill_and_repeat(tmp_path, [*arguments, *settings], num_kills=3, seed=1)


def test_two_sweeps_started_at_once_have_separate_directories(
    tmp_path: Path, small: list[str]
) -> None:
    place = [f"output_root={tmp_path.as_posix()}", "seed=0", "model.network.widths=[8,16,32]"]
    processes = [subprocess.Popen([*COMMAND, *small, *place]) for _ in range(2)]
    assert [process.wait(timeout=240) for process in processes] == [0, 0]
    sweeps = list((tmp_path / "sweeps").iterdir())
    assert len(sweeps) == 2
    assert all(len(runs_of(directory)) == 1 for directory in sweeps)
    shutil.rmtree(tmp_path / "sweeps")


def test_test_set_is_opened_once_for_the_winner(
    sweep_copy: Path, sweep: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    directory = sweep_copy
    assert leaderboard([str(directory), "--evaluate-best"]) == 0
    rows = json.loads((directory / "leaderboard.json").read_text())
    tested = [name for name, run in runs_of(directory).items() if "test/accuracy" in run.metrics]
    assert tested == rows[0]["jobs"]
    record = json.loads((directory / "test_opened.json").read_text())
    assert record["job"] == tested[0]
    capfd.readouterr()
    assert leaderboard([str(directory), "--evaluate-best"]) == 0
    assert "was opened before" in capfd.readouterr().out
    rows = json.loads((directory / "leaderboard.json").read_text())
    assert "test" not in rows[0]  # the tested run is still one of its entry's seeds
    assert main(["-m", *sweep]) == 0  # a finished job stays finished
    assert capfd.readouterr().out.count("finished before") == 2


def test_a_test_that_was_begun_is_finished_for_the_same_run(
    sweep_copy: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    directory = sweep_copy
    assert leaderboard([str(directory)]) == 0
    rows = json.loads((directory / "leaderboard.json").read_text())
    job = rows[-1]["jobs"][0]  # the winner of then, before more runs came
    (directory / "test_opened.json").write_text(json.dumps({"job": job, "candidates": 1}))
    best = directory / job / "checkpoints" / "best.ckpt"
    content = best.read_bytes()
    best.write_bytes(content[:1000])
    assert leaderboard([str(directory), "--evaluate-best"]) != 0
    error = capfd.readouterr().err
    assert "best.ckpt" in error
    assert "the same command tests it again" in error
    shutil.rmtree(best.parent / "best.ckpt.unusable", ignore_errors=True)
    best.write_bytes(content)
    assert leaderboard([str(directory), "--evaluate-best"]) == 0
    tested = [name for name, run in runs_of(directory).items() if "test/accuracy" in run.metrics]
    assert tested == [job]
