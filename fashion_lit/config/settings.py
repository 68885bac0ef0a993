"""A configuration's settings: flat, compared, and which of them may change when a run resumes.

Nothing here needs torch or Hydra.
"""

from typing import Any

from fashion_lit.errors import UserError

# Settings that cannot change what comes out, so a run may go on with other ones.
RESULT_NEUTRAL = (
    "test",
    "checkpoint",
    "tensorboard",
    "data.root",
    "data.mirrors",
    "trainer.enable_progress_bar",
    "trainer.enable_model_summary",
    "trainer.log_every_n_steps",
    "trainer.profiler",
)
# On another device the figures differ in the last bits, and the run says so; it may have to move.
INEXACT_IF_CHANGED = ("trainer.accelerator",)
# Schedules that do not know when the run ends, so `trainer.max_epochs` may be raised.
OPEN_ENDED = ("constant", "step", "plateau")

# Where a run lies and what starts it, not what it is: left out of its record.
LOCATION_KEYS = ("output_root", "run_dir", "sweep_name", "launcher")
PLACES = ("data.root", "data.mirrors")

Config = dict[str, Any]


def leaves(config: Config, prefix: str = "") -> dict[str, Any]:
    """Return {dotted key: value} of all settings; lists are values."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        path = f"{prefix}{key}"
        found |= leaves(value, f"{path}.") if isinstance(value, dict) else {path: value}
    return found


def flatten(config: Config) -> dict[str, float | str]:
    """Flatten to {"optimizer.lr": 0.1, …} for TensorBoard: numbers stay numbers, the rest is text.

    Where the data lies, when checkpoints are written and what TensorBoard shows is left out: it
    says nothing of a run.
    """
    silent = (*LOCATION_KEYS, "checkpoint", "tensorboard")
    return {
        key: value if isinstance(value, bool | int | float) else str(value)
        for key, value in leaves(config).items()
        if key not in PLACES and key.split(".")[0] not in silent
    }


def network_name(config: Config) -> str:
    """Return the network's name, "fast_cnn" or "resnet18"."""
    model = config["model"]
    return model["network"]["name"] if "network" in model else model["backbone"]


def differences(recorded: Config, wanted: Config) -> dict[str, tuple[Any, Any]]:
    """Return {dotted key: (recorded value, wanted value)} wherever the two differ."""
    old, new = leaves(recorded), leaves(wanted)
    pairs = {key: (old.get(key, "absent"), new.get(key, "absent")) for key in {**old, **new}}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


def check_resumable(recorded: Config, wanted: Config, whose: str) -> Config:
    """Return the settings a run goes on with: `wanted`, if that can only continue `recorded`.

    Raises UserError, naming the settings that differ, for anything that would change the result.
    """
    changed = differences(recorded, wanted)
    forbidden = [key for key in changed if not _may_change(key, recorded, wanted)]
    if forbidden:
        told = "; ".join(
            f"`{key}` is {changed[key][0]} there and {changed[key][1]} here" for key in forbidden
        )
        hint = ""
        if "trainer.max_epochs" in forbidden:
            hint = f" (more epochs need a scheduler that is {' or '.join(OPEN_ENDED)})"
        raise UserError(
            f"Expected the settings of {whose}, but {told}{hint}. Leave them out to continue "
            "it, or start another run."
        )
    return wanted


def _may_change(key: str, recorded: Config, wanted: Config) -> bool:
    if key == "trainer.max_epochs":
        more = wanted["trainer"]["max_epochs"] > recorded["trainer"]["max_epochs"]
        return more and recorded["scheduler"]["name"] in OPEN_ENDED
    if key == "data.device":  # augmentation draws there; on a GPU "auto" is the same
        return (recorded["data"]["device"], wanted["data"]["device"]) == ("cuda", "auto")
    return is_result_neutral(key) or key in INEXACT_IF_CHANGED


def is_result_neutral(key: str) -> bool:
    """Whether a setting cannot change what comes out of a run."""
    return any(key == name or key.startswith(f"{name}.") for name in RESULT_NEUTRAL)
