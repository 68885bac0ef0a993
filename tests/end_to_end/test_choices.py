"""Every choice of every group trains, leaves a complete run, and resumes exactly after a stop.

The choices are those in conf/. The long version kills real processes: pytest -m long -s -n 0
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_kills import SETTINGS, assert_same_result, check_kills

from fashion_lit.commands.evaluate import main as evaluate
from fashion_lit.commands.train import main
from fashion_lit.config.groups import CONF_DIR, choice_files
from fashion_lit.models.classifier import ImageClassifier
from fashion_lit.models.cnn import CNNClassifier
from fashion_lit.models.transfer import TransferClassifier
from fashion_lit.runs.directory import RunDirectory

# Groups that describe a run; `data` has the synthetic images in all tests, the others are sweeps'.
GROUPS = ("optimizer", "scheduler", "averaging", "precision", "augment", "debug", "model")
GROUPS += ("experiment", "callbacks", "loggers")
# Lightning's SWA does not resume exactly in the epochs that it averages (averaging=swa
# does), and the others' values are measured, or their packages are no dependencies; see
# test_own_parts.py.
NOT_EXACT = ("callbacks=swa", "callbacks=device_stats", "loggers=wandb", "loggers=mlflow")
RESNET = ["model.pretrained=false", "data.image_size=32"]
RESNET_20 = ["model.network.widths=[8,16,32]", "model.network.num_blocks=[1,1,1]"]
WIDE = ["model.network.depth=10", "model.network.width=1"]
# What makes a large choice small.
SMALLER = {
    "model=resnet18": RESNET,
    "model=resnet9": ["model.network.width=8"],
    "model=resnet_small_stem": RESNET_20,
    "model=wide_resnet": WIDE,
    "model=densenet": ["model.network.depth=16"],
    "model=vgg": ["model.network.depth=11"],
    "model=mobilenet_v2": ["model.network.width=0.25"],
    "experiment=report_a": RESNET,
    "experiment=report_a_as_published": RESNET,
    "experiment=resnet18_scratch": RESNET_20,
    "experiment=wide_resnet": WIDE,
}
CHOICES = [f"{group}={name}" for group in GROUPS for name in choice_files(group, [CONF_DIR])]
CHOICES = [choice for choice in CHOICES if choice not in NOT_EXACT]
# Those with a state of their own, and one of each other kind.
QUICK = [
    choice
    for choice in CHOICES
    if choice.startswith(("optimizer=", "scheduler=", "averaging=", "callbacks=", "loggers="))
    or choice in ("augment=strong", "precision=bf16", "debug=overfit")
]


def settings_of(choice: str) -> list[str]:
    """Return the overrides of a small run with a choice; debug=one_batch has one step."""
    if choice == "debug=one_batch":
        return [choice]
    if choice == "debug=overfit":
        return [choice, "trainer.max_epochs=3"]
    rate = [] if choice.startswith(("optimizer=", "experiment=")) else ["optimizer.lr=0.01"]
    return [choice, "trainer.max_epochs=2", *rate, *SMALLER.get(choice, [])]


def test_all_groups_of_a_run_are_tried() -> None:
    others = {"data", "launcher", "sweep", "search"}
    assert {path.name for path in CONF_DIR.iterdir() if path.is_dir()} == {*GROUPS, *others}
    assert SMALLER.keys() <= set(CHOICES)


@pytest.mark.parametrize("choice", QUICK)
def test_a_choice_resumes_exactly(
    choice: str,
    train: Callable[..., RunDirectory],
    small: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = [*settings_of(choice), "checkpoint.every_steps=2"]
    whole = train(*settings)
    run = RunDirectory(whole.path.with_name("stopped"))
    steps_left = whole.status["step"] * 2 // 3
    original = ImageClassifier.training_step

    def training_step(self: ImageClassifier, batch: Any, batch_idx: int) -> Any:
        nonlocal steps_left
        if steps_left == 0:
            raise SystemExit  # nothing is saved
        steps_left -= 1
        return original(self, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(ImageClassifier, "training_step", training_step)
        main([*small, *settings, f"run_dir={run.path.as_posix()}"])
    assert run.status["state"] != "finished"
    assert main([f"run_dir={run.path.as_posix()}"]) == 0
    assert_same_result(run, whole)


@pytest.mark.long
@pytest.mark.parametrize("choice", CHOICES)
def test_a_choice_survives_kills_and_is_evaluated(choice: str, tmp_path: Path) -> None:
    settings = [*SETTINGS, *settings_of(choice)]
    one_step = choice == "debug=one_batch"
    kills = [("validation", 1)] if one_step else [("step", 5), ("save", 2), ("validation", 2)]
    assert check_kills(tmp_path, settings, kills) >= (1 if one_step else 2)
    run = RunDirectory(tmp_path / "killed")
    kind = TransferClassifier if run.config["model"]["name"] == "transfer" else CNNClassifier
    for path in (run.best_checkpoint, run.last_checkpoint):
        assert kind.load_from_checkpoint(path).forward
    assert evaluate([str(run.path), "--split", "val"]) == 0
    assert (run.path / "report" / "report.html").exists()
