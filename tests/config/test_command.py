"""The command and the settings by which a run's page describes what differs from the default."""

from pathlib import Path

import pytest

from fashion_lit.config.command import changed_settings, train_overrides
from fashion_lit.config.compose import compose_jobs
from fashion_lit.config.overrides import prepare_overrides
from fashion_lit.config.schema import check
from fashion_lit.config.settings import LOCATION_KEYS, Config


def recorded(*overrides: str) -> Config:
    (job,) = compose_jobs(prepare_overrides(overrides), multirun=False)
    return {key: value for key, value in check(job).items() if key not in LOCATION_KEYS}


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["seed=3", "optimizer.lr=0.05"],
        ["model=resnet18", "data.image_size=64"],
        ["model=report_cnn", "optimizer=adamw", "scheduler=cosine"],
        ["experiment=report_a_as_published"],
        ["experiment=report_b", "precision=bf16", "trainer.max_epochs=3"],
        ["debug=overfit"],
        ["data=synthetic", "augment=flip_shift", "data.val_size=100", "data.train_size=900"],
        ["model.network.widths=[8,16,32]", "early_stopping.patience=3", "test=false"],
        ["ckpt_path=\"a b/{c},d='e'.ckpt\"", 'trainer.devices="1"', "~trainer.compile"],
        ["trainer.gradient_clip_val=0.5", "trainer.val_check_interval={minutes:5}"],
        ["model.label_smoothing=0", "model.class_weights=[1,1,1,1,1,1,2,1,1,1.5]"],
    ],
)  # fmt: skip
def test_the_command_composes_to_the_recorded_settings(overrides: list[str]) -> None:
    config = recorded(*overrides)
    found = train_overrides(config)
    assert found is not None
    assert recorded(*found) == config
    assert len(found) <= len(overrides)  # the reader types no more than the run's author


def test_the_command_names_the_folder_of_the_pictures(picture_folder: Path) -> None:
    place = f"data.root={picture_folder.as_posix()}"
    config = recorded("data=folder", place, "data.size=16", "data.batch_size=8")
    found = train_overrides(config)
    assert found is not None
    assert found[0] == "data=folder"
    assert recorded(*found) == config


def test_settings_that_no_command_gives_have_no_command() -> None:
    config = recorded()
    del config["optimizer"]["momentum"]
    assert train_overrides(config) is None


def test_a_run_of_an_earlier_version_has_a_command() -> None:
    config = recorded("seed=1")
    del config["data"]["train_size"], config["tensorboard"]["norms_every_steps"]
    config["data"]["mirrors"] = ["/elsewhere"]
    assert train_overrides(config) == ["seed=1"]


def test_changed_settings_have_their_value_and_the_default() -> None:
    changed = changed_settings(recorded("seed=1", "trainer.gradient_clip_val=0.5", "augment=none"))
    assert changed == {
        "seed": (1, 0),
        "trainer.gradient_clip_val": (0.5, "absent"),
        "augment.shift": (0, 1),
    }
    assert changed_settings(recorded()) == {}
