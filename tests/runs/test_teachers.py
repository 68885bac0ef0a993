"""`teacher`: a run that learns from others, and needs nothing of theirs once it has begun."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

from fashion_lit import CNNClassifier, to_input
from fashion_lit.commands.train import main
from fashion_lit.config.overrides import prepare_overrides
from fashion_lit.data.batches import TrainBatches
from fashion_lit.data.types import Batch
from fashion_lit.errors import Stopped
from fashion_lit.files import digest_of_file
from fashion_lit.models.classifier import ImageClassifier
from fashion_lit.models.distillation import Distillation
from fashion_lit.runs.directory import RunDirectory
from fashion_lit.runs.integrity import read_checkpoint
from fashion_lit.runs.teachers import DIGESTS
from fashion_lit.sweeps.jobs import plan_jobs
from fashion_lit.training import callbacks
from fashion_lit.training.loading import load_run

Train = Callable[..., RunDirectory]
TINY = ["model.network.widths=[4,4,4]", "test=false"]


def weights_of(run: RunDirectory) -> dict[str, Tensor]:
    return torch.load(run.last_checkpoint)["state_dict"]


def assert_equal_weights(one: RunDirectory, other: RunDirectory) -> None:
    found, expected = weights_of(one), weights_of(other)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)


def copy_of(run: RunDirectory) -> Path:
    return run.checkpoint_dir / "teacher_0.ckpt"


def stop_in_step(step: int) -> Any:
    """Stop a run when it begins this step."""
    original = ImageClassifier.training_step

    def stop(self: ImageClassifier, batch: Any, batch_idx: int) -> Any:
        if self.trainer.global_step == step:
            raise Stopped(15)
        return original(self, batch, batch_idx)

    return mock.patch.object(ImageClassifier, "training_step", stop)


@pytest.fixture
def stopped(run_copy: RunDirectory, small: list[str], tmp_path: Path) -> RunDirectory:
    """A run that was stopped in its first epoch; its teacher is `run_copy`."""
    run = RunDirectory(tmp_path / "stopped")
    typed = [f"run_dir={run.path.as_posix()}", f"teacher={run_copy.path.as_posix()}", *small, *TINY]
    with stop_in_step(3):
        assert main([*typed, "checkpoint.every_steps=2"]) == 143
    assert copy_of(run).read_bytes() == run_copy.best_checkpoint.read_bytes()
    return run


def resume(run: RunDirectory) -> int:
    return main([f"run_dir={run.path.as_posix()}"])


def test_one_teacher_at_temperature_1_is_training_on_its_probabilities(
    finished_run: RunDirectory, train: Train
) -> None:
    settings = [*TINY, "augment=flip_shift_erase", "augment.mixup=0.5", "data.image_size=32"]
    settings.append("model.label_smoothing=0")  # or it would smooth the probabilities
    place = f"teacher={finished_run.path.as_posix()}"
    student = train(*settings, place, "distillation.weight=1")

    network = CNNClassifier.load_from_checkpoint(finished_run.best_checkpoint).eval()
    draw = TrainBatches.draw

    def with_probabilities(self: TrainBatches, *args: Any, **kwargs: Any) -> Iterator[Batch]:
        self.datamodule.with_pixels = True
        for images, _, pixels in draw(self, *args, **kwargs):
            with torch.no_grad():
                answers = network(to_input(pixels, image_size=28, normalize=True)).softmax(1)
            yield images, answers

    with mock.patch.object(TrainBatches, "draw", with_probabilities):
        expected = train(*settings)
    assert weights_of(student).keys() == weights_of(expected).keys()
    for key, value in weights_of(expected).items():
        assert torch.allclose(weights_of(student)[key], value, atol=1e-6), key
    assert student.metrics["val/loss"] == pytest.approx(expected.metrics["val/loss"], rel=1e-5)


def test_a_stopped_run_ends_the_same_after_its_teacher_is_gone(
    stopped: RunDirectory, run_copy: RunDirectory, finished_run: RunDirectory, train: Train
) -> None:
    whole = train(*TINY, f"teacher={finished_run.path.as_posix()}")
    shutil.rmtree(run_copy.path)
    torch.manual_seed(5)  # a draw in between must not matter
    assert resume(stopped) == 0
    assert_equal_weights(stopped, whole)
    assert stopped.metrics["train/loss"] == whole.metrics["train/loss"]
    for run in (stopped, whole):
        assert {path.name for path in run.checkpoint_dir.iterdir()} == {"best.ckpt", "last.ckpt"}
    CNNClassifier.load_from_checkpoint(stopped.best_checkpoint)
    assert load_run(stopped.path).checkpoint == stopped.best_checkpoint
    assert main([f"run_dir={stopped.path.as_posix()}", "test=true"]) == 0
    assert "test/accuracy" in stopped.metrics


@pytest.mark.parametrize(
    ("damage", "teacher"),
    [
        ("delete", "there"),
        ("flip", "there"),
        ("replace", "there"),
        ("delete", "gone"),
        ("flip", "changed"),
    ],
)
def test_a_lost_copy_is_made_again_or_named(
    damage: str,
    teacher: str,
    stopped: RunDirectory,
    run_copy: RunDirectory,
    capsys: pytest.CaptureFixture[str],
) -> None:
    copy, content = copy_of(stopped), bytearray(copy_of(stopped).read_bytes())
    if damage == "delete":
        copy.unlink()
    elif damage == "flip":
        content[len(content) // 2] ^= 1
        copy.write_bytes(content)
    else:
        shutil.copy(run_copy.last_checkpoint, copy)  # intact, but another
    if teacher == "gone":
        shutil.rmtree(run_copy.path)
    elif teacher == "changed":
        shutil.copy(run_copy.last_checkpoint, run_copy.best_checkpoint)
    capsys.readouterr()
    if teacher == "there":
        with stop_in_step(3):
            assert resume(stopped) == 143
        assert copy.read_bytes() == run_copy.best_checkpoint.read_bytes()
        assert str(copy) in capsys.readouterr().out
    else:
        assert resume(stopped) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert str(copy) in error


def test_a_checkpoint_is_continued_with_its_teacher_alone(
    stopped: RunDirectory, run_copy: RunDirectory, tmp_path: Path, finished_run: RunDirectory
) -> None:
    shutil.copy(run_copy.last_checkpoint, run_copy.best_checkpoint)
    run = RunDirectory(tmp_path / "more")
    typed = [f"ckpt_path={stopped.last_checkpoint.as_posix()}", f"run_dir={run.path.as_posix()}"]
    with stop_in_step(2):
        assert main(typed) == 143  # its copy is beside the checkpoint
    assert copy_of(run).read_bytes() == finished_run.best_checkpoint.read_bytes()
    copy_of(stopped).unlink()
    shutil.rmtree(run.path)
    assert main(typed) == 2
    assert not run.path.exists()


def test_more_epochs_of_a_finished_run_need_the_teacher_again(
    run_copy: RunDirectory, train: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = [*TINY, "scheduler=constant", f"teacher={run_copy.path.as_posix()}"]
    run, whole = train(*settings), train(*settings, "trainer.max_epochs=2")
    more = f"run_dir={run.path.as_posix()}"
    assert main([more, "trainer.max_epochs=2"]) == 0
    assert_equal_weights(run, whole)
    shutil.copy(run_copy.last_checkpoint, run_copy.best_checkpoint)
    assert main([more, "trainer.max_epochs=3"]) == 2
    assert f"{run_copy.path} is gone or was changed" in capsys.readouterr().err
    assert main([more]) == 0
    assert run.status["state"] == "finished"


def test_a_run_loads_and_records_all_teachers(
    finished_run: RunDirectory, run_copy: RunDirectory, train: Train
) -> None:
    other = RunDirectory(run_copy.path)
    shutil.copy(other.last_checkpoint, other.best_checkpoint)
    places = [finished_run.path, other.best_checkpoint]
    typed = f"teacher={','.join(place.as_posix() for place in places)}"
    with mock.patch.object(callbacks, "Distillation", wraps=Distillation) as built:
        run = train(*TINY, typed, "distillation.temperature=2")
    assert len(built.call_args.args[0]) == 2
    assert built.call_args.kwargs == {"weight": 0.9, "temperature": 2}
    assert run.config["teacher"] == [str(place) for place in places]
    record = read_checkpoint(run.last_checkpoint)["run"]
    files = (finished_run.best_checkpoint, other.best_checkpoint)
    assert record[DIGESTS] == [digest_of_file(path) for path in files]


def test_a_fine_tune_keeps_the_teacher_unless_it_is_typed_away(
    stopped: RunDirectory,
    run_copy: RunDirectory,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert resume(stopped) == 0
    shutil.rmtree(run_copy.path)
    run = RunDirectory(tmp_path / "new")
    typed = [f"init_from={stopped.path.as_posix()}", f"run_dir={run.path.as_posix()}"]
    assert main(typed) == 2
    assert f"there is no {run_copy.path}" in capsys.readouterr().err
    assert not run.path.exists()
    assert main([f"run_dir={stopped.path.as_posix()}", "teacher=null"]) == 2
    assert f"init_from={stopped.path.as_posix()} teacher=null." in capsys.readouterr().err
    assert main([*typed, "teacher=null"]) == 0
    assert run.config["teacher"] is None


def test_values_of_a_sweep_are_teachers_of_their_own(
    finished_run: RunDirectory, run_copy: RunDirectory, small: list[str], tmp_path: Path
) -> None:
    shutil.copy(run_copy.last_checkpoint, run_copy.best_checkpoint)
    places = [path.as_posix() for path in (finished_run.path, run_copy.path)]
    both = ",".join(places)
    typed = prepare_overrides([*small, "test=false", f"teacher=null,{both},[{both}]"])
    jobs = plan_jobs(typed, tmp_path)
    expected = [None, *([place] for place in places), places]
    assert [job.config["teacher"] for job in jobs] == expected


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (["teacher=nowhere"], "Expected a run or a checkpoint for `teacher`, but there is no "),
        (["teacher=[]"], "Expected `teacher` to be a list of at least 1 value"),
        (["teacher=007"], "007"),
        (["teacher=grün,'b'"], "grün"),
        (["teacher=${output_root}"], "Expected the directory of a run"),
        (["teacher=choice(RUN,RUN)"], "holds several values; add -m"),
        (["teacher=RUN,RUN"], "Expected each teacher once"),
        (["teacher=[RUN,RUN/checkpoints/best.ckpt]"], "Expected each teacher once"),
        (["teacher=EMPTY"], "has no best epoch yet"),
        (["teacher=DAMAGED"], "Expected a checkpoint, but "),
        (
            ["teacher=RUN", "data=fashion_mnist"],
            "Expected a teacher that was trained on Fashion-MNIST",
        ),
        (["teacher=RUN", "distillation.weight=0"], "`distillation.weight` to be greater than 0"),
        (["teacher=RUN", "distillation.weight=1.5"], "`distillation.weight`"),
        (["teacher=RUN", "distillation.temperature=0"], "`distillation.temperature`"),
        (["distillation.temperature=2"], "`distillation.temperature` has no effect"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(
    typed: list[str],
    message: str,
    finished_run: RunDirectory,
    small: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    empty, damaged = RunDirectory(tmp_path / "empty"), tmp_path / "damaged.ckpt"
    empty.path.mkdir()
    empty.create(finished_run.config)
    damaged.write_bytes(finished_run.last_checkpoint.read_bytes()[:-1000])
    places = {"RUN": finished_run.path, "EMPTY": empty.path, "DAMAGED": damaged}
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for name, path in places.items():
        typed = [text.replace(name, path.as_posix()) for text in typed]
    settings = small if typed[-1] != "data=fashion_mnist" else []
    assert main([*settings, *typed]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not list((tmp_path / "here").iterdir())


def test_the_start_names_the_teachers_and_warns_of_those_who_saw_the_validation_images(
    finished_run: RunDirectory, train: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    warning = "this teacher trained on some of the validation images"
    place = f"teacher={finished_run.path.as_posix()}"
    train(*TINY, place, "trainer.limit_train_batches=1")
    output = capsys.readouterr().out
    assert f"learns from the fast_cnn after 8 steps in {finished_run.path}\n" in output
    assert warning not in output
    train(*TINY, place, "trainer.limit_train_batches=1", "data.split_seed=1")
    assert warning in capsys.readouterr().out
