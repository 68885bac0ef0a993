"""Describe recorded settings by what differs from the default run: the command and the settings.

    train_overrides(config)  # ["experiment=report_b", "seed=1"], or None
    changed_settings(config)  # {"seed": (1, 0), …}

Where the images' files are (DATA_LOCATION_KEYS) is no part of either: it depends on the machine.
With data=idx and data=folder, `data.root` says which images they are, and is part of both.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any

from fashion_lit.config.compose import compose_jobs
from fashion_lit.config.groups import CONF_DIR, OPTIONAL_GROUPS, choice_files
from fashion_lit.config.overrides import prepare_overrides
from fashion_lit.config.schema import check
from fashion_lit.config.settings import (
    ABSENT,
    DATA_LOCATION_KEYS,
    LOCATION_KEYS,
    Config,
    as_override,
    differences,
    is_result_neutral,
)
from fashion_lit.errors import UserError

NAMED_BY_ROOT = ("idx", "folder")  # choices of `data`
# The groups of a run, each with the start of the settings that its choices differ in.
GROUPS = {
    "data": "data.",
    "model": "model.",
    "augment": "augment.",
    "optimizer": "optimizer.",
    "scheduler": "scheduler.",
    "precision": "trainer.precision",
}


def train_overrides(recorded: Config) -> list[str] | None:
    """Return the shortest overrides found that `fashion-lit train` composes to recorded settings.

    Returns None if there are none, which is so for some runs of earlier versions, and for those
    that take settings from another run, which may be gone.
    """
    if recorded.get("init_from") is not None:
        return None
    starts = [
        (f"{group}={name}",)
        for group in OPTIONAL_GROUPS
        for name in choice_files(group, [CONF_DIR])
    ]
    num_changed = len(changes((), recorded))
    useful = [start for start in starts if len(changes(start, recorded)) < num_changed]
    overrides = min((complete(start, recorded) for start in [(), *useful]), key=len)
    try:
        check(compose(tuple(overrides)))
        return None if changes(tuple(overrides), recorded) else overrides
    except UserError:
        return None


def complete(start: Sequence[str], recorded: Config) -> list[str]:
    """Return `start` with the group choices that leave the fewest changes, and these changes."""
    chosen = tuple(start)
    for group, prefix in GROUPS.items():
        if any(key.startswith(prefix) for key in changes(chosen, recorded)):
            options = [
                chosen,
                *((*chosen, f"{group}={name}") for name in choice_files(group, [CONF_DIR])),
            ]
            chosen = min(options, key=lambda option: len(changes(option, recorded)))
    changed = changes(chosen, recorded)
    return [*chosen, *(as_override(key, value) for key, (value, _) in changed.items())]


def changed_settings(recorded: Config) -> dict[str, tuple[Any, Any]]:
    """Return {dotted key: (recorded value, default value)} of the settings that differ.

    Settings that only the default run has are left out; one that it lacks has the default "absent".
    """
    changed = changes((), recorded)
    return {key: pair for key, pair in changed.items() if pair[0] != ABSENT}


def changes(overrides: tuple[str, ...], recorded: Config) -> dict[str, tuple[Any, Any]]:
    """Return {dotted key: (recorded value, composed value)} of the settings that differ.

    A result-neutral setting that an earlier version did not record counts as equal.
    """
    composed = compose(overrides)
    wanted = {key: value for key, value in composed.items() if key not in LOCATION_KEYS}
    left_out = set(DATA_LOCATION_KEYS)
    if recorded["data"].get("name") in NAMED_BY_ROOT:
        left_out.remove("data.root")
    return {
        key: (old, new)
        for key, (old, new) in differences(recorded, wanted).items()
        if key not in left_out and not (old == ABSENT and is_result_neutral(key))
    }


@cache
def compose(overrides: tuple[str, ...]) -> Config:
    """Return the settings of `fashion-lit train OVERRIDES`; the caller does not change them.

    Raises UserError if they cannot be composed.
    """
    (config,) = compose_jobs(prepare_overrides(overrides), multirun=False)
    return config


def choices(group: str) -> list[str]:
    """Return the overrides that choose one of a group's choices in conf/."""
    return [f"{group}={name}" for name in choice_files(group, [CONF_DIR])]
