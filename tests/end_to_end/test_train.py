"""`fashion-lit train` on small synthetic data: its output, files and exit codes."""

import shutil
from collections.abc import Callable
from pathlib import Path

import lightning as L
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch._inductor.exc import TritonMissing

from fashion_lit.commands.evaluate import main as evaluate
from fashion_lit.commands.train import main
from fashion_lit.data.sources.fashion_mnist import CLASS_NAMES, CLASS_TAGS
from fashion_lit.evaluation.curves import TEST_GROUP
from fashion_lit.models.build import build_classifier
from fashion_lit.runs.directory import RunDirectory
from fashion_lit.text import quote_command
from fashion_lit.training.run import describe

Train = Callable[..., RunDirectory]
MODELS = {
    "fast_cnn": ["model=fast_cnn", "model.network.widths=[8,16,32]"],
    "report_cnn": ["model=report_cnn"],
    "resnet18": ["model=resnet18", "model.pretrained=false", "data.image_size=32"],
}
BEST_KEYS = {"epoch", "global_step", "state_dict", "optimizer_states", "lr_schedulers"}


@pytest.mark.parametrize("model", MODELS)
def test_one_epoch_leaves_a_complete_run_directory(model: str, train: Train) -> None:
    run = train(*MODELS[model])
    names = {path.name for path in run.path.iterdir()}
    (events,) = [name for name in names if name.startswith("events.out.tfevents.")]
    assert names - {".lock"} == {
        "config.yaml", "data.json", "status.json", "metrics.json", "checkpoints", events
    }  # fmt: skip
    assert {path.name for path in run.checkpoint_dir.iterdir()} == {"best.ckpt", "last.ckpt"}
    end = {"state": "finished", "epoch": 1, "step": 4, "reason": ""}
    assert end.items() <= run.status.items()
    for split in ("val", "test"):
        for tag in CLASS_TAGS:
            for score in ("precision", "recall", "f1"):
                assert 0 <= run.metrics[f"{split}/{score}/{tag}"] <= 1
    expected = {"val/accuracy", "val/loss", "test/accuracy", "test/loss", "train/loss"}
    expected |= {"train/accuracy", "train/images_per_second", "best_epoch", "seconds"}
    assert expected <= run.metrics.keys()
    assert not {"output_root", "run_dir", "sweep_name"} & run.config.keys()


@pytest.mark.parametrize("model", MODELS)
def test_checkpoints_hold_only_tensors_and_plain_types(model: str, train: Train) -> None:
    run = train(*MODELS[model])
    for path in (run.best_checkpoint, run.last_checkpoint):
        checkpoint = torch.load(path, weights_only=True)  # refuses everything else
        assert checkpoint.keys() >= BEST_KEYS
        assert_plain(checkpoint)


def assert_plain(value: object) -> None:
    if isinstance(value, dict):
        for key, item in value.items():
            assert isinstance(key, str | int)
            assert_plain(item)
    elif isinstance(value, list | tuple):
        for item in value:
            assert_plain(item)
    else:
        assert value is None or isinstance(value, torch.Tensor | str | int | float | bool)


def test_last_ckpt_is_the_last_epoch_and_best_ckpt_the_best(train: Train) -> None:
    run = train("trainer.max_epochs=3", "optimizer.lr=1e-3", "scheduler=constant")
    assert torch.load(run.last_checkpoint, weights_only=True)["run"]["epochs_done"] == 3
    accuracies = [point.value for point in read_events(run).Scalars("val/accuracy")]
    best_epoch = torch.load(run.best_checkpoint, weights_only=True)["epoch"]
    assert best_epoch == accuracies.index(max(accuracies)) == run.metrics["best_epoch"] - 1
    assert run.metrics["val/accuracy"] == pytest.approx(max(accuracies))


def test_test_false_leaves_the_test_set_closed(train: Train) -> None:
    run = train("test=false")
    assert "val/accuracy" in run.metrics
    assert not [name for name in run.metrics if name.startswith("test/")]


def test_the_same_seed_gives_bit_identical_weights_and_another_does_not(train: Train) -> None:
    settings = ["model=report_cnn", "augment=flip_shift_erase", "precision=bf16", "test=false"]
    states = [
        torch.load(train(*settings, f"seed={seed}").last_checkpoint, weights_only=True)
        for seed in (0, 0, 1)
    ]
    one, again, other = (state["state_dict"] for state in states)
    assert all(torch.equal(one[key], again[key]) for key in one)
    assert not torch.equal(one["network.output.weight"], other["network.output.weight"])


def test_a_cnn_learns_the_synthetic_images(train: Train) -> None:
    run = train(
        "data.num_train=5000", "data.val_size=1000", "data.num_test=500", "data.batch_size=100",
        "data.eval_batch_size=500", "model.network.widths=[16,32,64]", "trainer.max_epochs=4",
        "augment=none", "model.label_smoothing=0", "optimizer=adam", "optimizer.lr=5e-3",
    )  # fmt: skip
    assert run.metrics["test/accuracy"] > 0.9
    assert run.metrics["train/loss"] < 0.4


def test_debug_overfit_overfits_three_batches(train: Train) -> None:
    run = train("debug=overfit", "trainer.max_epochs=30", "model.network.widths=[16,32,64]")
    assert run.metrics["train/accuracy"] > 0.97


def test_debug_one_batch_runs_every_stage(train: Train) -> None:
    run = train("debug=one_batch")
    assert run.status["step"] == 1
    assert "test/accuracy" in run.metrics


def test_clipping_and_accumulation_are_passed_on(train: Train) -> None:
    run = train("trainer.gradient_clip_val=0.1", "trainer.accumulate_grad_batches=2", "test=false")
    assert run.status["step"] == 2


def test_screen_shows_epochs_and_the_table(
    train: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train("trainer.max_epochs=2")
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    assert lines[0].startswith("fast_cnn, ")
    assert lines[1] == "synthetic garments: 200 images to train on, 100 to validate, 101 to test"
    assert lines[3].split() == [
        "epoch", "train", "loss", "acc", "%", "val", "loss", "acc", "%", "lr", "seconds",
        "images/s",
    ]  # fmt: skip
    epochs = [line for line in lines if line.startswith(("1/2", "2/2"))]
    assert len(epochs) == 2
    assert epochs[0].endswith("best")
    for name in CLASS_NAMES:
        assert sum(line.strip().startswith(name + " ") for line in lines) == 1
    assert any(line.split()[:2] == ["weighted", "avg"] for line in lines)
    assert f"{100 * run.metrics['test/accuracy']:.2f} %" in captured.out
    assert quote_command("tensorboard", "--logdir", str(run.path)) in captured.out
    for noise in ("Tip", "TPU", "GPU available", "Warning", "deprecated"):
        assert noise not in captured.out + captured.err


def test_screen_shows_no_validation_where_there_was_none(
    train: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    train("trainer.max_epochs=3", "trainer.check_val_every_n_epoch=2", "test=false")
    epochs = [line.split() for line in capsys.readouterr().out.splitlines() if "/3  " in line]
    assert [epoch[3:5] == ["-", "-"] for epoch in epochs] == [True, False, True]
    assert [epoch[-1] == "best" for epoch in epochs] == [False, True, False]


def test_report_as_protocol_warns_of_optimistic_figures(
    train: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train("data.validate_on_test=true")
    assert "picks the best epoch on the test set, so the figures" in capsys.readouterr().out
    assert run.metrics["val/accuracy"] == run.metrics["test/accuracy"]


def read_events(run: RunDirectory) -> EventAccumulator:
    events = EventAccumulator(str(run.path), size_guidance={"images": 0, "tensors": 0})
    return events.Reload()


def test_tensorboard_holds_curves_classes_images_and_hyperparameters(
    finished_run: RunDirectory,
) -> None:
    events = read_events(finished_run)
    tags = events.Tags()
    per_epoch = {"train/loss", "train/accuracy", "val/loss", "val/accuracy"}
    per_epoch |= {f"val/{s}/{t}" for s in ("f1", "precision", "recall") for t in CLASS_TAGS}
    for tag in per_epoch:
        assert len(events.Scalars(tag)) == 2, tag
    assert len(events.Scalars(f"{TEST_GROUP}/accuracy")) == 1
    assert {"train/lr", "train/batch_loss", "train/images_per_second"} <= set(tags["scalars"])
    assert "epoch" not in tags["scalars"]
    assert not [tag for tag in tags["scalars"] if "T-shirt/" in tag]
    assert {"val/best_confusion_matrix", f"{TEST_GROUP}/confusion_matrix"} < set(tags["images"])
    assert "custom_scalars__config__" in tags["tensors"]
    summary = events.SummaryMetadata("_hparams_/experiment")
    assert summary.plugin_data.plugin_name == "hparams"
    assert b"val/accuracy" in summary.plugin_data.content
    start = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    assert b"optimizer.lr" in start
    best = events.Scalars("val/best_accuracy")[0].value
    assert best == pytest.approx(finished_run.metrics["val/accuracy"])


def test_failure_is_recorded_with_its_reason(
    tmp_path: Path, small: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*small, "optimizer.lr=1e25", f"run_dir={(tmp_path / 'run').as_posix()}"]) == 1
    error = capsys.readouterr().err
    assert "Expected finite losses" in error
    assert len(error.splitlines()) == 2
    status = RunDirectory(tmp_path / "run").status
    assert status["state"] == "failed"
    assert "Expected finite losses" in status["reason"]


def test_missing_data_ends_in_one_message(
    tmp_path: Path, small: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    empty = (tmp_path / "empty").as_posix()
    settings = ["data=fashion_mnist", f"data.root={empty}", f"data.mirrors=[{empty}]"]
    small = [s for s in small if not s.startswith(("data=", "data.num_"))]
    assert main([*small, *settings, f"run_dir={(tmp_path / 'run').as_posix()}"]) == 1
    error = capsys.readouterr().err
    assert "train-images-idx3-ubyte.gz is not under" in error
    assert "data=synthetic" in error
    assert "Traceback" not in error


def test_a_compiled_network_keeps_its_names_and_learns_the_same(train: Train) -> None:
    if shutil.which("c++") is None:
        pytest.skip("needs a C++ compiler")
    widths = "model.network.widths=[4,4,4]"
    eager, compiled = train(widths), train(widths, "trainer.compile=true")
    states = [torch.load(run.last_checkpoint)["state_dict"] for run in (eager, compiled)]
    assert states[0].keys() == states[1].keys()
    for key, value in states[0].items():
        torch.testing.assert_close(states[1][key], value, atol=1e-3, rtol=1e-3)


def test_a_failing_compiler_ends_in_one_sentence(
    small: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(module: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> None:
        raise OSError("no compiler")

    compile_with = torch.nn.Module.compile
    monkeypatch.setattr(
        torch.nn.Module, "compile", lambda self, mode: compile_with(self, backend=fail)
    )
    place = f"run_dir={(tmp_path / 'run').as_posix()}"
    assert main([*small, "trainer.compile=true", place]) == 1
    error = capsys.readouterr().err
    assert "Expected torch.compile to work for trainer.compile, but it failed" in error
    assert "Traceback" not in error


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_gradients_are_clipped_in_mixed_precision(optimizer: str, train: Train) -> None:
    clip = ["trainer.gradient_clip_val=1e-9", "precision=bf16", "optimizer.weight_decay=0"]
    run = train(*clip, f"optimizer={optimizer}", "scheduler=constant")
    state = torch.load(run.last_checkpoint, map_location="cpu")
    L.seed_everything(0)
    first = build_classifier(run.config).network.state_dict()
    for name, value in first.items():
        if optimizer == "sgd" and not name.endswith(("running_mean", "running_var", "tracked")):
            torch.testing.assert_close(state["state_dict"][f"network.{name}"], value)
    moments = [v for s in state["optimizer_states"][0]["state"].values() for v in s.values()]
    assert all(float(m.abs().max()) < 1e-6 for m in moments if m is not None and m.ndim)


def test_a_frozen_backbone_is_unfrozen(train: Train) -> None:
    small_resnet = ["model=resnet18", "model.pretrained=false", "data.image_size=32"]
    thaw = ["model.freeze_backbone=true", "model.unfreeze_epoch=1", "trainer.max_epochs=2"]
    run = train(*small_resnet, *thaw, "optimizer=sgd", "trainer.limit_train_batches=1")
    assert run.status["state"] == "finished"


def test_a_missing_triton_ends_in_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    message = describe(TritonMissing(None))
    assert message.startswith("Expected torch.compile to work for trainer.compile, but it failed")
    assert "TritonMissing" in message
    assert "Traceback" not in capsys.readouterr().err


def test_an_unavailable_device_is_refused_before_a_directory_is_created(
    small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = f"output_root={tmp_path.as_posix()}"
    settings = [s for s in small if not s.startswith("trainer.accelerator")]
    for more in ([], ["-m", "seed=0,1"]):
        assert main([*more, *settings, "trainer.accelerator=tpu", place]) == 2
        error = capsys.readouterr().err
        assert "Expected a device for trainer.accelerator=tpu" in error
        assert len(error.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [("bf16-true", torch.bfloat16), ("16-true", torch.float16), ("64-true", torch.float64)],
)
def test_averaged_weights_and_class_weights_have_the_runs_precision(
    precision: str, dtype: torch.dtype, train: Train
) -> None:
    images = ["data.num_train=400", "data.val_size=301", "data.eval_batch_size=301"]
    weights = "model.class_weights.Shirt=2"
    run = train(f"trainer.precision={precision}", weights, *images)
    weight = torch.load(run.last_checkpoint)["state_dict"]["average.output.weight"]
    assert weight.dtype == dtype  # also of batch-norm statistics
    assert run.metrics["val/num_images"] == 301  # which bf16 cannot represent
    assert evaluate([str(run.path)]) == 0
