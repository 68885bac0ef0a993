"""`init_from`: a new run from the weights of another alone."""

import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

from fashion_lit.commands.train import main
from fashion_lit.errors import Stopped, UserError
from fashion_lit.files import digest_of_file, with_digest
from fashion_lit.models.build import build_classifier
from fashion_lit.models.classifier import ImageClassifier
from fashion_lit.runs.directory import RunDirectory
from fashion_lit.runs.initial_weights import (
    initial_weights,
    load_initial_weights,
    saw_validation_images,
)
from fashion_lit.runs.integrity import read_checkpoint
from fashion_lit.runs.resume_checkpoints import ResumeCheckpoints

Train = Callable[..., RunDirectory]


def start(source: RunDirectory, target: Path, *overrides: str) -> RunDirectory:
    """Train a new run from the weights of another."""
    places = [f"init_from={source.path.as_posix()}", f"run_dir={target.as_posix()}"]
    assert main([*places, *overrides]) == 0
    return RunDirectory(target)


def averaged_weights(checkpoint: Path) -> dict[str, Tensor]:
    state = torch.load(checkpoint)["state_dict"]
    return {k.removeprefix("average."): v for k, v in state.items() if k.startswith("average.")}


def assert_equal_weights(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_the_weights_are_the_sources_to_the_bit_before_the_first_step(
    finished_run: RunDirectory, tmp_path: Path
) -> None:
    seen = {}

    def on_train_start(classifier: Any) -> None:
        seen["network"] = {k: v.clone() for k, v in classifier.network.state_dict().items()}
        seen["average"] = {k: v.clone() for k, v in classifier.average.state_dict().items()}

    with mock.patch.object(ImageClassifier, "on_train_start", on_train_start, create=True):
        start(finished_run, tmp_path / "new", "optimizer=adamw", "trainer.max_epochs=1")
    expected = averaged_weights(finished_run.best_checkpoint)
    assert_equal_weights(seen["network"], expected)
    assert_equal_weights(seen["average"], expected)


def test_settings_are_the_sources_and_those_typed(
    finished_run: RunDirectory, tmp_path: Path
) -> None:
    typed = ["optimizer=adamw", "scheduler=constant", "augment=none", "trainer.max_epochs=1"]
    config = start(finished_run, tmp_path / "new", *typed, "test=false").config
    assert config["optimizer"]["name"] == "adamw"
    assert "momentum" not in config["optimizer"]
    assert config["scheduler"] == {"name": "constant"}
    assert config["augment"]["shift"] == 0
    assert config["data"] == finished_run.config["data"]
    assert config["init_from"] == str(finished_run.path)
    status = RunDirectory(tmp_path / "new").status
    assert status["source_digest"] == digest_of_file(finished_run.best_checkpoint)


def test_an_own_part_replaces_the_sources_settings(
    finished_run: RunDirectory, tmp_path: Path
) -> None:
    typed = ["optimizer.name=torch.optim.NAdam", "trainer.max_epochs=1", "test=false"]
    typed += ["scheduler.name=torch.optim.lr_scheduler.LinearLR"]
    config = start(finished_run, tmp_path / "new", *typed).config
    rate = finished_run.config["optimizer"]["lr"]
    assert config["optimizer"]["name"] == "torch.optim.NAdam"
    assert config["optimizer"]["lr"] == rate
    assert "momentum" not in config["optimizer"]
    assert config["scheduler"] == {"name": "torch.optim.lr_scheduler.LinearLR"}


def test_a_stopped_fine_tune_resumes_exactly(run_copy: RunDirectory, tmp_path: Path) -> None:
    typed = ["optimizer.lr=0.01", "trainer.max_epochs=2", "test=false"]
    whole = start(run_copy, tmp_path / "whole", *typed)
    run = RunDirectory(tmp_path / "stopped")
    place = f"run_dir={run.path.as_posix()}"
    source = f"init_from={run_copy.path.as_posix()}"
    with mock.patch.object(ResumeCheckpoints, "on_train_start", side_effect=Stopped(15)):
        assert main([source, place, *typed]) == 143  # before its first checkpoint
    with mock.patch.object(ResumeCheckpoints, "on_train_epoch_start", side_effect=Stopped(15)):
        assert main([place]) == 143
    original = ImageClassifier.validation_step

    def stop(self: ImageClassifier, batch: Any, batch_idx: int) -> Any:
        if self.trainer.global_step > 5:
            raise Stopped(15)
        return original(self, batch, batch_idx)

    with mock.patch.object(ImageClassifier, "validation_step", stop):
        assert main([place]) == 143  # in the second epoch
    shutil.rmtree(run_copy.path)  # no longer needed
    assert main([place]) == 0
    states = [torch.load(r.last_checkpoint)["state_dict"] for r in (run, whole)]
    assert_equal_weights(*states)
    names = [key for key in whole.metrics if not key.startswith(("train/images", "seconds"))]
    assert {k: run.metrics[k] for k in names} == {k: whole.metrics[k] for k in names}


def test_a_changed_source_is_refused_until_the_run_has_a_checkpoint(
    run_copy: RunDirectory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = f"run_dir={(tmp_path / 'new').as_posix()}"
    with mock.patch.object(ResumeCheckpoints, "on_train_start", side_effect=Stopped(15)):
        assert main([place, f"init_from={run_copy.path.as_posix()}"]) == 143
    shutil.copy(run_copy.last_checkpoint, run_copy.best_checkpoint)
    assert main([place]) == 2
    assert "the file was changed since" in capsys.readouterr().err


def test_a_last_layer_of_other_classes_starts_anew(finished_run: RunDirectory) -> None:
    checkpoint = read_checkpoint(finished_run.best_checkpoint)
    for prefix in ("network", "average"):
        checkpoint["state_dict"][f"{prefix}.output.weight"] = torch.zeros(7, 256)
    classifier = build_classifier(finished_run.config)
    weights = initial_weights(checkpoint, classifier, Path("x"), "fast_cnn")
    assert classifier.network.state_dict().keys() - weights.keys() == {"output.weight"}


def test_ten_other_classes_have_another_last_layer(finished_run: RunDirectory) -> None:
    checkpoint = read_checkpoint(finished_run.best_checkpoint)
    classifier = build_classifier(finished_run.config, [f"cat {i}" for i in range(10)])
    weights = initial_weights(checkpoint, classifier, Path("x"), "fast_cnn")
    assert classifier.network.state_dict().keys() - weights.keys() == {"output.weight"}
    del checkpoint["hyper_parameters"]["class_names"]  # an earlier version's
    assert initial_weights(checkpoint, classifier, Path("x"), "fast_cnn").keys() == weights.keys()
    colour = build_classifier(finished_run.config, in_channels=3)
    with pytest.raises(UserError, match=r"images of 3 channel\(s\), .* x has those for 1;"):
        initial_weights(checkpoint, colour, Path("x"), "fast_cnn")


def test_imagenet_weights_do_not_replace_them(train: Train, tmp_path: Path) -> None:
    small = ["model=resnet18", "data.image_size=32", "trainer.limit_train_batches=1", "test=false"]
    source = train(*small, "model.pretrained=false")
    run = start(source, tmp_path / "new", "optimizer.lr=1e-9", "model.freeze_backbone=true")
    config = source.config | {"init_from": str(source.path)}
    config["model"]["pretrained"] = True
    classifier = build_classifier(config)
    assert "starts from the weights after 1 steps" in load_initial_weights(classifier, config)
    classifier.setup("fit")  # would download them
    before, after = (torch.load(r.best_checkpoint)["state_dict"] for r in (source, run))
    assert torch.equal(before["network.conv1.weight"], after["network.conv1.weight"])


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (["init_from=nowhere"], "Expected a checkpoint, but there is no file "),
        (["init_from=SOURCE", "model=report_cnn"], "Expected weights of a report_cnn with these"),
        (["init_from=SOURCE", "model.network.widths=[8,8,8,8]"], "leave out the settings of model"),
        (["init_from=SOURCE", "ckpt_path=x"], "Expected one of `init_from`, which takes the"),
        (["init_from=SOURCE", "model.pretrained=false"], "has no effect beside init_from"),
        (["init_from=3.5"], "there is no file "),
        (["-m", "init_from=SOURCE", "model=report_cnn,fast_cnn"], "Expected weights of a report_c"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(
    typed: list[str],
    message: str,
    finished_run: RunDirectory,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    source = finished_run.path.as_posix()
    assert main([text.replace("SOURCE", source) for text in typed]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def printed_command(error: str) -> list[str]:
    """Return the arguments of the command that a message ends with."""
    command = error.rpartition("fashion-lit train ")[2].strip().removesuffix(".")
    return shlex.split(command)


@pytest.mark.parametrize("typed", ["run_dir=RUN", "ckpt_path=RUN/checkpoints/last.ckpt"])
def test_more_epochs_under_a_schedule_of_fixed_length_give_a_command_that_works(
    typed: str,
    run_copy: RunDirectory,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    place = typed.replace("RUN", run_copy.path.as_posix())
    assert main([place, "trainer.max_epochs=3"]) == 2
    command = printed_command(capsys.readouterr().err)
    assert command[0].startswith("init_from=")
    assert main(command) == 0
    (path,) = (tmp_path / "runs").iterdir()
    assert RunDirectory(path).status["epoch"] == 3


def test_jobs_of_a_sweep_start_from_the_same_weights(
    finished_run: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    source = f"init_from={finished_run.path.as_posix()}"
    command = ["-m", source, "optimizer.lr=0.01", "trainer.max_epochs=1", "sweep_name=s"]
    assert main(command) == 0
    (path,) = (tmp_path / "sweeps" / "s").glob("*-????????/")
    config = RunDirectory(path).config
    assert config["data"]["num_train"] == finished_run.config["data"]["num_train"]
    assert config["optimizer"]["lr"] == 0.01


def test_a_damaged_source_is_refused(run_copy: RunDirectory, tmp_path: Path) -> None:
    run_copy.best_checkpoint.write_bytes(with_digest(b"no checkpoint"))
    place = f"run_dir={(tmp_path / 'new').as_posix()}"
    assert main([f"init_from={run_copy.path.as_posix()}", place]) == 2
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("changed", "saw"),
    [
        ({}, False),
        ({"train_size": 100}, False),
        ({"val_size": 90}, False),  # some of the 100
        ({"val_size": 110}, True),
        ({"split_seed": 1}, True),
        ({"split_seed": 1, "name": "fashion_mnist"}, False),
        ({"validate_on_test": True}, False),
    ],
)
def test_validation_images_that_the_source_trained_on_are_told(
    changed: dict[str, Any], saw: bool, finished_run: RunDirectory
) -> None:
    before = finished_run.config["data"]
    assert saw_validation_images(before, before | changed) == saw
    assert saw_validation_images(before | {"validate_on_test": True}, before)


def test_a_fine_tune_is_continued_after_its_source_is_gone(
    run_copy: RunDirectory, tmp_path: Path
) -> None:
    typed = ["scheduler=constant", "trainer.max_epochs=1", "test=false"]
    run = start(run_copy, tmp_path / "new", *typed)
    shutil.rmtree(run_copy.path)
    places = [f"ckpt_path={run.last_checkpoint.as_posix()}", f"run_dir={tmp_path.as_posix()}/more"]
    assert main([*places, "trainer.max_epochs=2"]) == 0
    assert RunDirectory(tmp_path / "more").status["epoch"] == 2
