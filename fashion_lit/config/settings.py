"""Flatten and compare configurations, and check which settings may change when a run resumes.

This module does not import torch or Hydra.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fashion_lit.errors import UserError
from fashion_lit.parts.kinds import plugins_of
from fashion_lit.parts.trust import is_import_path, plugins_override
from fashion_lit.text import quote_command, quote_if_needed, quote_value

# Settings that cannot change the result of a run, so it may resume with different values.
RESULT_NEUTRAL = (
    "test",
    "checkpoint",
    "tensorboard",
    "loggers",
    "data.root",
    "data.mirrors",
    "trainer.enable_progress_bar",
    "trainer.enable_model_summary",
    "trainer.log_every_n_steps",
    "trainer.profiler",
)
# On another device the metrics differ in the last bits. A run may still resume with another value,
# because it may have to move to another machine; it then prints a notice.
INEXACT_IF_CHANGED = ("trainer.accelerator",)
# Schedules that do not depend on the run's length, so `trainer.max_epochs` may be raised.
OPEN_ENDED = ("constant", "step", "plateau")

# Where a run is stored, how it is started, and which packages its command trusts; not part of the
# recorded settings.
LOCATION_KEYS = ("output_root", "run_dir", "sweep_name", "launcher", "plugins")
# Settings that runs of earlier versions lack, and the value that these runs have in effect: with it
# a setting counts as absent, so that their runs and sweeps resume.
ADDED_SETTINGS = {
    "data.train_size": None,
    "data.class_sampling": None,
    "init_from": None,
    "teacher": None,
    "distillation.weight": 0.9,
    "distillation.temperature": 1.0,
    "model.grey_stem": "repeat",
    "model.swa_start": None,
    "model.swa_lr_factor": 0.25,
    "model.network.attention": None,
    "model.network.drop_path": 0.0,
    "augment.rotate": 0.0,
    "augment.scale": 0.0,
    "augment.shear": 0.0,
    "augment.brightness": 0.0,
    "augment.contrast": 0.0,
    "augment.trivial_augment": 0.0,
    "augment.random_erase": 0.0,
    "augment.random_erase_area": [0.02, 0.4],
    "augment.random_erase_aspect": 0.3,
    "augment.random_erase_fill": "random",
    "augment.mixup": 0.0,
    "augment.cutmix": 0.0,
    "augment.until_epoch": None,
    "augment.classes": None,
    "augment.own": None,
}
DATA_LOCATION_KEYS = ("data.root", "data.mirrors")

ABSENT = "absent"  # the value, in `differences`, of a setting that a configuration lacks
PLAIN_TEXT = re.compile(r"[A-Za-z][A-Za-z0-9_.-]*")  # needs no quotes in an override
OTHER_VALUES = ("true", "false", "null", "nan", "inf")  # not text without quotes

Config = dict[str, Any]


def absolute(path: Any) -> Any:
    """Return an absolute path; what is no text stays the same."""
    try:
        return str(Path(path).expanduser().absolute()) if isinstance(path, str) else path
    except RuntimeError:  # "~name" of an unknown user
        return path


def leaves(config: Config, prefix: str = "") -> dict[str, Any]:
    """Return {dotted key: value} of all settings but ADDED_SETTINGS; lists are values."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        path = f"{prefix}{key}"
        if isinstance(value, dict):
            found |= leaves(value, f"{path}.")
        elif path not in ADDED_SETTINGS or value != ADDED_SETTINGS[path]:
            found[path] = value
    return found


def flatten(config: Config) -> dict[str, float | str]:
    """Flatten to {"optimizer.lr": 0.1, …} for TensorBoard; other values than numbers become text.

    Paths and the settings of checkpoints and TensorBoard are left out, because they do not describe
    the experiment.
    """
    excluded = (*LOCATION_KEYS, "checkpoint", "tensorboard")
    return {
        key: value if isinstance(value, bool | int | float) else str(value)
        for key, value in leaves(config).items()
        if key not in DATA_LOCATION_KEYS and key.split(".")[0] not in excluded
    }


def network_name(config: Config) -> str:
    """Return the network's name, such as "fast_cnn" or "resnet18"."""
    model = config["model"]
    return model["network"]["name"] if "network" in model else model["backbone"]


def differences(recorded: Config, wanted: Config) -> dict[str, tuple[Any, Any]]:
    """Return {dotted key: (recorded value, wanted value)} of all settings that differ.

    A setting that one configuration lacks has the value ABSENT.
    """
    old, new = leaves(recorded), leaves(wanted)
    pairs = {key: (old.get(key, ABSENT), new.get(key, ABSENT)) for key in {**old, **new}}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


def check_resumable(recorded: Config, wanted: Config, owner: str, path: Path) -> Config:
    """Return `wanted` if a run with the settings `recorded` may resume with them.

    Raises UserError, which lists the forbidden changes, if they would change the result.

    Args:
        recorded: settings of the run or checkpoint.
        wanted: settings to resume with.
        owner: name of the run or checkpoint in the message.
        path: its directory or file.
    """
    changed = differences(recorded, wanted)
    forbidden = [key for key in changed if not may_change(key, recorded, wanted)]
    if forbidden:
        changes = "; ".join(
            f"`{key}` is {changed[key][0]} in the record and {changed[key][1]} in the command"
            for key in forbidden
        )
        hint = ""
        if "trainer.max_epochs" in forbidden:
            hint = f" (more epochs need a scheduler that is {' or '.join(OPEN_ENDED)}"
            hint += ", without averaging=swa)" if recorded["model"].get("swa_start") else ")"
        remedy = "or start another run"
        new = {key: changed[key][1] for key in forbidden}
        if not any(key.startswith(("model.", "ckpt_path", "init_from")) for key in new):
            remedy = f"or start a new run from its weights: {init_command(path, new)}"
        raise UserError(
            f"Expected the settings of {owner}, but {changes}{hint}; omit these settings to "
            f"continue it, {remedy}."
        )
    return wanted


def check_epochs_left(epochs_done: int, settings: Config, checkpoint: Path) -> None:
    """Raise UserError unless `trainer.max_epochs` is more than the checkpoint's epochs."""
    max_epochs = settings["trainer"]["max_epochs"]
    if epochs_done < max_epochs:
        return
    if is_open_ended(settings):
        remedy = f"type a greater one, such as trainer.max_epochs={epochs_done + 10}"
    else:
        remedy = f"start a new run from its weights: {init_command(checkpoint, {})}"
    raise UserError(
        f"Expected `trainer.max_epochs` to be more than the {epochs_done} epochs that "
        f"{checkpoint} has completed, but got {max_epochs}; {remedy}."
    )


def init_command(path: Path, settings: Mapping[str, Any]) -> str:
    """Return the command that starts a new run from the weights of a run or a checkpoint.

    Args:
        path: the run's directory or the file.
        settings: new settings, by their dotted keys.
    """
    typed = [as_override(key, value) for key, value in settings.items()]
    place = f"init_from={quote_if_needed(path.as_posix())}"
    return quote_command("fashion-lit", "train", place, *typed)


def resume_command(run_dir: Path, config: Config) -> str:
    """Return the command that resumes the run in a directory."""
    place = f"run_dir={quote_if_needed(run_dir.as_posix())}"
    return quote_command("fashion-lit", "train", place, *plugins_override(plugins_of(config)))


def as_override(key: str, value: Any) -> str:
    """Return the override that sets a setting to a plain value, or removes one that is ABSENT.

    ADDED_SETTINGS are never removed: an absent one has its value there.
    """
    if value == ABSENT:
        value = ADDED_SETTINGS.get(key, ABSENT)
    if value == ABSENT:
        return f"~{key}"
    if isinstance(value, str):
        is_plain = PLAIN_TEXT.fullmatch(value) and value.lower() not in OTHER_VALUES
        return f"{key}={value if is_plain else quote_value(value)}"
    return f"{key}={json.dumps(value, separators=(',', ':'), ensure_ascii=False)}"


def may_change(key: str, recorded: Config, wanted: Config) -> bool:
    """Whether a run may resume with another value of a setting."""
    if key == "trainer.max_epochs":
        more = wanted["trainer"]["max_epochs"] > recorded["trainer"]["max_epochs"]
        return more and is_open_ended(recorded)
    if key == "data.device":  # augmentation draws on this device; on a GPU "auto" equals "cuda"
        return (recorded["data"]["device"], wanted["data"]["device"]) == ("cuda", "auto")
    return is_result_neutral(key) or key in INEXACT_IF_CHANGED


def is_open_ended(config: Config) -> bool:
    """Return whether the rates of a run's first epochs do not depend on their number."""
    name = config["scheduler"]["name"]
    is_open = name in OPEN_ENDED or is_import_path(name)  # such a class does not know the length
    return is_open and config["model"].get("swa_start") is None


def is_result_neutral(key: str) -> bool:
    """Return whether a setting cannot change the result of a run."""
    return any(key == name or key.startswith(f"{name}.") for name in RESULT_NEUTRAL)
