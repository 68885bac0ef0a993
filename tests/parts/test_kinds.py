"""The kinds of parts: which settings they have, and what cannot be built."""

import sys
from types import ModuleType
from typing import Any

import pytest
from lightning.pytorch import callbacks as lightning_callbacks
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.optim import SGD, RAdam
from torch.optim.lr_scheduler import CyclicLR, ReduceLROnPlateau

from fashion_lit.errors import UserError
from fashion_lit.parts.kinds import (
    KINDS,
    build_part,
    check_trusted_parts,
    is_plateau,
    named_parts,
    part_class,
    part_fields,
    plugins_of,
)
from fashion_lit.parts.trust import trusting

CALLBACKS = "lightning.pytorch.callbacks"
CONFIG = {
    "optimizer": {"name": "torch.optim.RAdam", "lr": 1e-3},
    "scheduler": {"name": "constant"},
    "model": {"name": "cnn", "network": {"name": "my_nets.Net"}},
    "augment": {"own": {"name": "my_augment.Own"}, "flip": 0.5},
    "callbacks": {"lr": {"name": f"{CALLBACKS}.LearningRateMonitor"}},
    "data": {"name": "synthetic"},
}


def test_parts_are_what_has_an_import_path() -> None:
    assert named_parts(CONFIG) == {
        "optimizer": "torch.optim.RAdam",
        "model.network": "my_nets.Net",
        "augment.own": "my_augment.Own",
        "callbacks.lr": f"{CALLBACKS}.LearningRateMonitor",
    }
    assert plugins_of(CONFIG) == ["my_augment", "my_nets"]
    assert named_parts({"model": 3, "callbacks": None, "loggers": {"a": 1}}) == {}


def test_all_packages_are_asked_for_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("my_nets", "my_augment"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    with pytest.raises(UserError, match=r"plugins=\[my_nets,my_augment\]"):
        check_trusted_parts(CONFIG)
    with pytest.raises(UserError, match=r"plugins=\[my_augment\]"), trusting(["my_nets"]):
        check_trusted_parts(CONFIG)
    with trusting(["my_nets", "my_augment"]):
        check_trusted_parts(CONFIG)


@pytest.mark.parametrize(("setting", "kind"), KINDS.items())
def test_the_base_of_each_kind_exists_and_is_no_part(setting: str, kind: Any) -> None:
    package, _, name = kind.base.rpartition(".")
    assert isinstance(getattr(__import__(package, fromlist=[name]), name), type)
    with pytest.raises(UserError), trusting(["fashion_lit"]):
        part_class(setting, kind.base)


def test_settings_are_without_what_the_program_gives() -> None:
    assert "params" not in part_fields("optimizer", "torch.optim.RAdam")
    schedule = part_fields("scheduler", "torch.optim.lr_scheduler.CyclicLR")
    assert {"optimizer", "last_epoch"}.isdisjoint(schedule)
    assert {"base_lr", "interval"} <= schedule.keys()
    plateau = part_fields("scheduler", "torch.optim.lr_scheduler.ReduceLROnPlateau")
    assert "interval" not in plateau
    save_dir = part_fields("loggers.csv", "lightning.pytorch.loggers.CSVLogger")["save_dir"]
    assert save_dir[1] is None
    net = part_fields("model.network", "torchvision.models.mnasnet.MNASNet")
    assert net.keys() == {"alpha", "dropout"}


def test_a_part_is_built_from_its_settings_and_what_its_constructor_takes() -> None:
    net = nn.Linear(2, 2)
    optimizer = build_part("optimizer", CONFIG["optimizer"], net.parameters(), unknown=1)
    assert isinstance(optimizer, RAdam)
    assert optimizer.defaults["lr"] == 1e-3
    csv = {"name": "lightning.pytorch.loggers.CSVLogger"}
    assert build_part("loggers.csv", csv, save_dir="x").save_dir == "x"
    set_itself = build_part("loggers.csv", csv | {"save_dir": "y"}, save_dir="x")
    assert isinstance(set_itself, CSVLogger)
    assert set_itself.save_dir == "y"


def test_an_error_of_the_constructor_is_one_sentence() -> None:
    with pytest.raises(UserError, match=r"RAdam of `optimizer` to be built from its settings"):
        build_part(
            "optimizer", {"name": "torch.optim.RAdam", "lr": -1}, nn.Linear(1, 1).parameters()
        )


def test_only_a_plateau_schedule_reads_the_validation_loss() -> None:
    assert is_plateau(ReduceLROnPlateau)
    assert is_plateau(type("Own", (ReduceLROnPlateau,), {}))
    assert not is_plateau(CyclicLR)
    assert not is_plateau(SGD)


@pytest.mark.parametrize(
    ("name", "instead"),
    [
        ("RichProgressBar", "trainer.enable_progress_bar"),
        ("TQDMProgressBar", "trainer.enable_progress_bar"),
        ("RichModelSummary", "trainer.enable_model_summary"),
        ("LearningRateFinder", "find-lr"),
        ("BatchSizeFinder", "data.batch_size"),
        ("EMAWeightAveraging", "averaging=ema"),
        ("BackboneFinetuning", "model.unfreeze_epoch"),
        ("GradientAccumulationScheduler", "trainer.accumulate_grad_batches"),
        ("LambdaCallback", "a class of your own"),
        ("ModelPruning", "channels_last"),
        ("SpikeDetection", "cannot load its state"),
    ],
)
def test_a_callback_that_contradicts_this_program_is_refused(name: str, instead: str) -> None:
    assert hasattr(lightning_callbacks, name)
    with pytest.raises(UserError, match=instead):
        part_class("callbacks.mine", f"{CALLBACKS}.{name}")
