"""Resuming a stopped run with its settings and its newest valid checkpoint."""

import copy
import io
import os
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch

from fashion_lit.commands.train import main
from fashion_lit.config.compose import amend
from fashion_lit.config.settings import check_resumable, differences
from fashion_lit.errors import Stopped, UserError
from fashion_lit.files import with_digest
from fashion_lit.runs.checkpoints import environment
from fashion_lit.runs.directory import RunDirectory
from fashion_lit.runs.resume import find_restart
from fashion_lit.runs.resume_checkpoints import ResumeCheckpoints
from fashion_lit.sweeps.jobs import fingerprint

CONFIG = {
    "seed": 0,
    "test": True,
    "optimizer": {"name": "sgd", "lr": 0.1},
    "model": {"name": "cnn"},
    "scheduler": {"name": "step"},
    "trainer": {"max_epochs": 2},
    "data": {"root": None},
}


def write_checkpoint(checkpoint: Any, path: Path) -> None:
    """Save with a digest, as a run does."""
    buffer = io.BytesIO()
    torch.save(checkpoint, buffer)
    path.write_bytes(with_digest(buffer.getvalue()))


def changed(**settings: Any) -> dict[str, Any]:
    config = copy.deepcopy(CONFIG)
    for path, value in settings.items():
        group, _, key = path.partition("__")
        if key:
            config[group][key] = value
        else:
            config[group] = value
    return config


def test_differences_name_dotted_keys_on_either_side() -> None:
    other = changed(optimizer__lr=0.2, scheduler__gamma=0.5)
    del other["seed"]
    expected = {
        "seed": (0, "absent"),
        "optimizer.lr": (0.1, 0.2),
        "scheduler.gamma": ("absent", 0.5),
    }
    assert differences(CONFIG, other) == expected
    assert differences(CONFIG, copy.deepcopy(CONFIG)) == {}


@pytest.mark.parametrize(
    "settings", [{"test": False}, {"data__root": "x"}, {"trainer__max_epochs": 3}]
)
def test_result_neutral_settings_may_change(settings: dict[str, Any]) -> None:
    assert check_resumable(CONFIG, changed(**settings), "x", Path("x")) == changed(**settings)


def test_settings_that_change_the_result_are_reported() -> None:
    with pytest.raises(
        UserError, match=r"`seed` is 0 in the record and 1 in the command; `optimizer.lr` is 0.1"
    ):
        check_resumable(CONFIG, changed(optimizer__lr=0.2, seed=1), "the run in x", Path("x"))
    with pytest.raises(UserError, match=r"`trainer.max_epochs` is 2 in the record and 1"):
        check_resumable(CONFIG, changed(trainer__max_epochs=1), "the run in x", Path("x"))


def test_a_schedule_of_fixed_length_takes_no_more_epochs() -> None:
    recorded = changed(scheduler__name="one_cycle")
    wanted = changed(scheduler__name="one_cycle", trainer__max_epochs=3)
    with pytest.raises(UserError, match="more epochs need a scheduler that is constant or step"):
        check_resumable(recorded, wanted, "the run in x", Path("x"))


def test_a_stochastic_weight_average_takes_no_more_epochs() -> None:
    recorded = changed(model__swa_start=0.75)  # with scheduler=step
    wanted = changed(model__swa_start=0.75, trainer__max_epochs=3)
    with pytest.raises(UserError, match="or plateau, without averaging=swa"):
        check_resumable(recorded, wanted, "the run in x", Path("x"))


def test_amend_takes_single_settings_alone_and_groups_from_the_composed_configuration() -> None:
    composed = changed(optimizer__lr=0.3, seed=5) | {"run_dir": "here"}
    amended = amend(CONFIG, ["++optimizer.lr=0.3", "++run_dir=here"], composed)
    assert amended == changed(optimizer__lr=0.3)
    assert amend(CONFIG, ["optimizer=sgd"], composed) == changed(optimizer__lr=0.3, seed=5)


# Checkpoints that must not be used


class Exploit:
    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, ("touch hacked",)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def flip_a_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 255
    path.write_bytes(data)


def change_configuration(path: Path) -> None:
    checkpoint = torch.load(path)
    checkpoint["run"]["config"]["optimizer"]["lr"] = 3.0
    write_checkpoint(checkpoint, path)


def change_architecture(path: Path) -> None:
    checkpoint = torch.load(path)
    checkpoint["run"]["config"]["model"]["network"] = {"name": "report_cnn"}
    checkpoint["hyper_parameters"]["network"] = {"name": "report_cnn"}
    write_checkpoint(checkpoint, path)


def foreign_lightning_checkpoint(path: Path) -> None:
    checkpoint = torch.load(path)
    del checkpoint["run"]
    write_checkpoint(checkpoint, path)


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated": (truncate, r"last\.ckpt \([\d,]+ bytes\) is damaged or not one"),
    "empty": (lambda path: path.write_bytes(b""), r"last\.ckpt \(0 bytes\) is damaged or not one"),
    "text": (lambda path: path.write_text("epoch 1"), r"\(7 bytes\) is damaged or not one"),
    "flipped byte": (flip_a_byte, r"last\.ckpt \([\d,]+ bytes\) is damaged or not one"),
    "raw pickle": (lambda path: path.write_bytes(pickle.dumps(Exploit())), "is damaged or not one"),
    "malicious": (
        lambda path: torch.save(Exploit(), path),
        r"last\.ckpt contains \w+\.system; it was not loaded, because loading it could execute",
    ),
    "other configuration": (
        change_configuration,
        r"last\.ckpt belongs to another configuration \(optimizer\.lr\)",
    ),
    "other architecture": (change_architecture, r"configuration \(model\.network\.\w+"),
    "foreign": (foreign_lightning_checkpoint, r"last\.ckpt was not written by it"),
}


@pytest.fixture
def copied_run(run_copy: RunDirectory) -> RunDirectory:
    """A copy of a finished run, marked as interrupted, with a previous checkpoint."""
    shutil.copy(run_copy.best_checkpoint, run_copy.previous_checkpoint)
    run_copy.write_status("interrupted")
    return run_copy


@pytest.mark.parametrize("name", DAMAGES)
def test_invalid_checkpoint_is_renamed_and_the_previous_one_used(
    name: str, copied_run: RunDirectory, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(copied_run.path)
    damage, message = DAMAGES[name]
    damage(copied_run.last_checkpoint)
    restart = find_restart(copied_run, copied_run.config)
    assert restart.checkpoint == copied_run.previous_checkpoint
    error = capsys.readouterr().err
    assert re.search(message, error), error
    assert "renamed to last.ckpt.unusable" in error
    assert not copied_run.last_checkpoint.exists()
    assert not Path("hacked").exists()


# A new run takes its configuration from the checkpoint, so that cannot be another one.
@pytest.mark.parametrize("name", [name for name in DAMAGES if not name.startswith("other")])
def test_new_run_from_an_invalid_checkpoint_is_refused(
    name: str, copied_run: RunDirectory, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    damage, message = DAMAGES[name]
    damage(copied_run.last_checkpoint)
    place = [f"ckpt_path={copied_run.last_checkpoint.as_posix()}", "run_dir=new"]
    assert main(place) == 2
    error = capsys.readouterr().err
    assert re.search(message, error), error
    assert len(error.splitlines()) == 1
    assert not Path("new").exists()
    assert not Path("hacked").exists()


def test_weights_of_another_architecture_never_load(copied_run: RunDirectory) -> None:
    for path in copied_run.checkpoint_dir.iterdir():
        change_architecture(path)
    restart = find_restart(copied_run, copied_run.config)
    assert restart.checkpoint is None  # start from scratch
    assert len(list(copied_run.checkpoint_dir.glob("*.unusable"))) == 3


# Whole runs


def test_finished_run_is_reported_and_unchanged(
    copied_run: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    copied_run.write_status("finished")
    before = {
        path: path.stat().st_mtime_ns for path in copied_run.path.rglob("*") if path.is_file()
    }
    assert main([f"run_dir={copied_run.path.as_posix()}"]) == 0
    out = capsys.readouterr().out
    assert "is finished." in out
    assert f"test        accuracy {100 * copied_run.metrics['test/accuracy']:.2f} %" in out
    del before[copied_run.lock_file]
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_resumed_run_reaches_the_same_metrics_from_an_older_checkpoint(
    copied_run: RunDirectory, finished_run: RunDirectory
) -> None:
    copied_run.last_checkpoint.unlink()
    copied_run.previous_checkpoint.unlink()
    copied_run.metrics_file.unlink()
    assert main([f"run_dir={copied_run.path.as_posix()}", "trainer.enable_progress_bar=true"]) == 0
    clocks = ("seconds", "train/images_per_second")
    for name, value in finished_run.metrics.items():
        assert name in clocks or copied_run.metrics[name] == value, name
    assert copied_run.config["trainer"]["enable_progress_bar"] is True


def test_contradicting_settings_are_refused_and_nothing_changes(
    copied_run: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    before = copied_run.config
    assert main([f"run_dir={copied_run.path.as_posix()}", "optimizer.lr=0.7"]) == 2
    assert "`optimizer.lr` is 0.15 in the record and 0.7" in capsys.readouterr().err
    assert copied_run.config == before
    assert copied_run.status["state"] == "interrupted"


def test_misspelled_setting_of_a_resumed_run_is_reported(
    copied_run: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([f"run_dir={copied_run.path.as_posix()}", "optimizer.lrr=0.7"]) == 2
    assert "Unknown setting `optimizer.lrr`; did you mean" in capsys.readouterr().err


def test_more_epochs_resume_from_the_last_one(
    train: Callable[..., RunDirectory], capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ["scheduler=step", "scheduler.step_size=1"]
    long = train(*settings, "trainer.max_epochs=2")
    run = train(*settings, "test=false")
    assert main([f"run_dir={run.path.as_posix()}", "trainer.max_epochs=2", "test=true"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("2/2 ")]
    assert lines[0].split()[:6] == lines[1].split()[:6]
    assert run.metrics["test/accuracy"] == long.metrics["test/accuracy"]
    assert run.config["trainer"]["max_epochs"] == 2


def test_new_run_departs_from_a_checkpoint_whose_run_is_gone(
    train: Callable[..., RunDirectory], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = ["model=report_cnn", "scheduler=constant"]
    whole = train(*settings, "trainer.max_epochs=2")
    first = train(*settings)
    first.last_checkpoint.rename(tmp_path / "kept.ckpt")
    shutil.rmtree(first.path)
    assert main(["ckpt_path=kept.ckpt", "trainer.max_epochs=2"]) == 0
    (path,) = (tmp_path / "runs").iterdir()
    assert path.name.endswith("_report_cnn")
    run = RunDirectory(path)
    assert run.status["epoch"] == 2
    assert run.config["ckpt_path"] == str(tmp_path / "kept.ckpt")
    weights = [torch.load(r.last_checkpoint)["state_dict"] for r in (run, whole)]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[1])


def test_new_run_needs_epochs_to_train(
    finished_run: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([f"ckpt_path={finished_run.last_checkpoint.as_posix()}"]) == 2
    assert "more than the 2 epochs that" in capsys.readouterr().err


def test_missing_checkpoint_is_reported(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ckpt_path=absent.ckpt"]) == 2
    assert "absent.ckpt" in capsys.readouterr().err


def test_missing_best_checkpoint_is_reported(
    copied_run: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    truncate(copied_run.best_checkpoint)
    assert main([f"run_dir={copied_run.path.as_posix()}"]) == 2
    error = capsys.readouterr().err
    assert "best.ckpt.unusable" in error
    assert "to train from the beginning" in error
    shutil.rmtree(copied_run.checkpoint_dir)
    assert main([f"run_dir={copied_run.path.as_posix()}"]) == 0


def test_changed_environment_is_told(
    copied_run: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = torch.load(copied_run.last_checkpoint)
    checkpoint["run"]["environment"]["threads"] = "96"
    write_checkpoint(checkpoint, copied_run.last_checkpoint)
    assert main([f"run_dir={copied_run.path.as_posix()}"]) == 0
    out = capsys.readouterr().out
    assert "resumes after 2 complete epochs and 8 steps, from " in out
    assert "Changed since the checkpoint: threads was 96, is " in out
    assert "not bit-identical to those of an uninterrupted run" in out


def tag_as_of_a_gpu(path: Path) -> None:
    """Rewrite a checkpoint as if its tensors had been on a GPU."""
    checkpoint = torch.load(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")
        write_checkpoint(checkpoint, path)
    if not torch.cuda.is_available():
        with pytest.raises(RuntimeError, match="CUDA"):
            torch.load(path)


@pytest.mark.parametrize("finished", [True, False])
def test_a_run_of_a_gpu_resumes_and_is_tested_without_one(
    finished: bool, copied_run: RunDirectory
) -> None:
    metrics = copied_run.metrics
    copied_run.write_metrics({k: v for k, v in metrics.items() if not k.startswith("test/")})
    for path in (copied_run.best_checkpoint, copied_run.last_checkpoint):
        tag_as_of_a_gpu(path)
    copied_run.write_status("finished" if finished else "interrupted")
    assert main([f"run_dir={copied_run.path.as_posix()}", "test=true"]) == 0
    assert copied_run.status["state"] == "finished"
    assert copied_run.metrics["test/accuracy"] == metrics["test/accuracy"]
    assert copied_run.metrics["best_epoch"] == metrics["best_epoch"]


def record(run: RunDirectory, group: str, key: str, value: str) -> None:
    """Rewrite a run so that it was trained with another setting."""
    config = run.config
    config[group][key] = value
    run.write_config(config)
    for path in run.checkpoint_dir.iterdir():
        checkpoint = torch.load(path)
        checkpoint["run"]["config"][group][key] = value
        write_checkpoint(checkpoint, path)


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize(
    ("group", "key", "message"),
    [
        ("trainer", "accelerator", "Expected a device for trainer.accelerator=cuda"),
        ("data", "device", "Expected a CUDA device for data.device=cuda"),
    ],
)
def test_a_run_on_a_missing_device_resumes_on_another_one_when_overridden(
    group: str, key: str, message: str, copied_run: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    record(copied_run, group, key, "cuda")
    place = f"run_dir={copied_run.path.as_posix()}"
    assert main([place]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1
    assert copied_run.status["state"] == "interrupted"
    assert main([place, f"{group}.{key}=auto"]) == 0
    assert copied_run.config[group][key] == "auto"
    assert copied_run.best_checkpoint.exists()  # the check of its configuration accepts the change
    assert not list(copied_run.checkpoint_dir.glob("*.unusable"))


@pytest.mark.usefixtures("no_gpu")
def test_a_finished_run_is_tested_on_available_devices_with_a_notice(
    copied_run: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    metrics = copied_run.metrics
    copied_run.write_metrics({k: v for k, v in metrics.items() if not k.startswith("test/")})
    record(copied_run, "trainer", "accelerator", "cuda")
    record(copied_run, "data", "device", "cuda")
    copied_run.write_status("finished")
    assert main([f"run_dir={copied_run.path.as_posix()}", "test=true"]) == 0
    notice = "This machine lacks the run's devices; the run is evaluated on "
    assert notice in capsys.readouterr().out
    assert copied_run.metrics["test/accuracy"] == metrics["test/accuracy"]


def test_images_stay_on_the_device_that_augments_them(
    copied_run: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    for device in ("cpu", "cuda"):
        assert main([f"run_dir={copied_run.path.as_posix()}", f"data.device={device}"]) == 2
        error = capsys.readouterr().err
        assert f"`data.device` is auto in the record and {device}" in error
    assert copied_run.status["state"] == "interrupted"


def test_threads_count_on_a_cpu_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "H100")
    found = []
    for device in ("cpu", "cuda:0"):
        strategy = SimpleNamespace(root_device=torch.device(device))
        trainer: Any = SimpleNamespace(strategy=strategy, world_size=1, precision="32-true")
        found.append(environment(trainer))
    assert found[0].keys() - found[1].keys() == {"threads"}
    assert [described["device"] for described in found] == ["cpu", "H100"]


@pytest.mark.parametrize("piece", ["best", "events", "metrics"])
@pytest.mark.parametrize("how", ["deleted", "changed"])
def test_a_finished_runs_lost_piece_is_restored_or_named(
    piece: str,
    how: str,
    finished_run: RunDirectory,
    run_copy: RunDirectory,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = run_copy
    (events,) = run.path.glob("events.*")
    path = {"best": run.best_checkpoint, "events": events, "metrics": run.metrics_file}[piece]
    if how == "deleted":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes().replace(b"0.", b"1.", 1) + b" ")
    code = main([f"run_dir={run.path.as_posix()}"])
    output = capsys.readouterr()
    assert path.name in output.out + output.err
    if piece == "metrics":
        clocks = ("seconds", "train/images_per_second", "max_allocated_gib", "max_reserved_gib")
        assert code == 0
        found, expected = (
            {k: v for k, v in r.metrics.items() if k not in clocks} for r in (run, finished_run)
        )
        assert found == expected
    else:
        assert code == 2


def test_a_run_starts_again_only_from_the_checkpoint_it_started_from(
    train: Callable[..., RunDirectory], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ["scheduler=constant", "test=false"]
    first, other = train(*settings), train(*settings, "seed=1")
    source = tmp_path / "source.ckpt"
    shutil.copy(first.last_checkpoint, source)
    run = RunDirectory(tmp_path / "second")
    command = [f"run_dir={run.path.as_posix()}", f"ckpt_path={source.as_posix()}"]
    with mock.patch.object(ResumeCheckpoints, "on_train_start", side_effect=Stopped(15)):
        assert main([*command, "trainer.max_epochs=2"]) == 143  # before its first checkpoint
    assert run.exists
    assert not run.checkpoint_dir.exists()
    shutil.copy(other.last_checkpoint, source)
    capsys.readouterr()
    assert main([f"run_dir={run.path.as_posix()}"]) == 2
    assert str(source) in capsys.readouterr().err
    source.unlink()
    assert main([f"run_dir={run.path.as_posix()}"]) == 2
    assert str(source) in capsys.readouterr().err
    shutil.copy(first.last_checkpoint, source)
    assert main([f"run_dir={run.path.as_posix()}"]) == 0


def test_a_run_without_a_setting_that_was_added_resumes_with_its_null(
    copied_run: RunDirectory,
) -> None:
    config = copied_run.config
    identity = fingerprint(config)
    assert config["data"].pop("train_size", "gone") is None
    assert fingerprint(config) == identity
    assert differences(config, copied_run.config) == {}
    copied_run.write_config(config)
    place = f"run_dir={copied_run.path.as_posix()}"
    assert main([place, "data.train_size=150"]) == 2
    assert main([place, "data.train_size=null"]) == 0


def test_a_run_from_before_attention_and_drop_path_resumes(
    train: Callable[..., RunDirectory],
) -> None:
    settings = ("scheduler=constant", "test=false")
    run, current = train(*settings), train(*settings)
    config = run.config
    checkpoint = torch.load(run.last_checkpoint, weights_only=True)
    for holder in (config["model"], checkpoint["run"]["config"]["model"]):
        added = {"attention": None, "drop_path": 0.0}
        assert holder["network"].items() >= added.items()
        holder["network"] = {k: v for k, v in holder["network"].items() if k not in added}
    checkpoint["hyper_parameters"]["network"] = config["model"]["network"]
    run.write_config(config)
    write_checkpoint(checkpoint, run.last_checkpoint)
    assert fingerprint(config) == fingerprint(current.config)
    run.write_status("interrupted")
    for directory in (run, current):
        place = f"run_dir={directory.path.as_posix()}"
        assert main([place, "model.network.drop_path=0.1"]) == 2
        assert main([place, "trainer.max_epochs=2"]) == 0
        assert main([place, "model.network.attention=null", "trainer.max_epochs=3"]) == 0
        assert main([place, "trainer.max_epochs=4"]) == 0
    states = [
        torch.load(r.last_checkpoint, weights_only=True)["state_dict"] for r in (run, current)
    ]
    assert all(torch.equal(states[0][key], value) for key, value in states[1].items())


def test_drop_path_resumes_bit_identically(
    train: Callable[..., RunDirectory],
) -> None:
    settings = ["model=wide_resnet", "model.network.depth=10", "model.network.width=1",
                "model.network.drop_path=0.5", "model.network.attention=cbam", "test=false",
                "scheduler=constant"]  # fmt: skip
    whole, run = train(*settings, "trainer.max_epochs=2"), train(*settings)
    torch.manual_seed(5)  # a draw in between must not matter
    assert main([f"run_dir={run.path.as_posix()}", "trainer.max_epochs=2"]) == 0
    other = train(*settings, "trainer.max_epochs=2", "model.network.drop_path=0.0")
    states = [
        torch.load(r.last_checkpoint, weights_only=True)["state_dict"] for r in (whole, run, other)
    ]
    for key, value in states[0].items():
        assert torch.equal(states[1][key], value), key
    assert not torch.equal(states[0]["network.stem.weight"], states[2]["network.stem.weight"])


def test_class_weights_by_name_may_be_typed_again(
    train: Callable[..., RunDirectory], capsys: pytest.CaptureFixture[str]
) -> None:
    run = train("model.class_weights.Shirt=2", "test=false")
    place = f"run_dir={run.path.as_posix()}"
    assert main([place, "model.class_weights.Shirt=2"]) == 0
    assert main([place, "model.class_weights={shirt:2}"]) == 0
    assert main([place, "model.class_weights.Bag=2"]) == 2
    assert "`model.class_weights` is [1.0, " in capsys.readouterr().err
