"""Refuse unknown settings within a second, before torch is imported.

`schema.check` knows exactly which settings are valid, but needs torch. Here a setting is refused
only if no choice of its group can have it.
"""

import ast
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from fashion_lit.config.compose import compose_jobs, split_jobs
from fashion_lit.config.effects import check_chosen_names
from fashion_lit.config.explain import unknown_setting
from fashion_lit.config.groups import config_dirs, is_group, parse_override, paths_in
from fashion_lit.config.settings import Config
from fashion_lit.config.trainer import OWN_TRAINER_KEYS, TrainerSettings
from fashion_lit.errors import UserError

PACKAGE = Path(__file__).resolve().parents[1]
# Where the functions and classes are whose arguments are settings.
SOURCES = ("data", "data/sources", "models", "models/networks")
OPEN_GROUPS = ("launcher",)  # `sweeps.launch` checks it
MAX_BASES = 20  # combinations of choices that are composed


def check_names(overrides: Sequence[str]) -> None:
    """Raise UserError for an override of a setting that no run has, or of a whole group.

    Args:
        overrides: as `prepare_overrides` returns them.
    """
    directories = config_dirs(overrides)
    parsed = [parse_override(text) for text in overrides]
    choosing = [
        text
        for text, override in zip(overrides, parsed, strict=True)
        if is_group(override.key_or_group, directories)
        or override.key_or_group.startswith("hydra.")
        or "/" in override.key_or_group
    ]
    bases = [compose_jobs(job, multirun=False)[0] for job in split_jobs(choosing)[:MAX_BASES]]
    check_chosen_names(overrides, bases[0])
    known = list(dict.fromkeys(path for base in bases for path in paths_in(base)))
    known += [f"trainer.{name}" for name in TrainerSettings.model_fields]
    for text, override in zip(overrides, parsed, strict=True):
        if text in choosing or override.is_delete():
            continue
        path = override.key_or_group
        groups = [name for name in known if name.startswith(f"{path}.")]
        if groups and override.value() == {}:
            raise UserError(f"`{text.lstrip('+')}` sets nothing; set {' or '.join(groups[:8])}.")
        if groups and not isinstance(override.value(), dict):
            raise UserError(
                f"`{path}` is a group of settings, not one; set {' or '.join(groups[:8])}."
            )
        if not groups and not is_possible(path, known, bases[0]):
            raise UserError(unknown_setting(path, known))


def is_possible(path: str, known: Sequence[str], base: Config) -> bool:
    """Return whether a run may have the setting at a dotted path."""
    parts = path.split(".")
    parents = {".".join(parts[:length]) for length in range(1, len(parts) + 1)}
    if parents & set(known) or parts[0] in OPEN_GROUPS:
        return True
    if parts[0] not in base or len(parts) == 1:
        return False
    if parts[0] == "trainer":
        return parts[1] in TrainerSettings.model_fields or parts[1] in OWN_TRAINER_KEYS
    return parts[-1] in argument_names()


@cache
def argument_names() -> frozenset[str]:
    """Return the names of all arguments of the functions and classes in SOURCES."""
    return frozenset(
        argument.arg
        for folder in SOURCES
        for path in (PACKAGE / folder).glob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.arguments)
        for argument in (*node.posonlyargs, *node.args, *node.kwonlyargs)
    )
