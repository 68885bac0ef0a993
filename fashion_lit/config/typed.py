"""Refuse settings that were typed, but are unknown or have no effect beside the others.

`check_mode` refuses those that are for a single run or a multirun alone.

`check_names` takes a second and imports no torch. It refuses a setting only if no choice of its
group can have it; `schema.check` knows exactly which settings are valid. `check_effects` then
refuses those that do nothing.
"""

import ast
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path

from hydra.core.override_parser.types import Override

from fashion_lit.config.compose import compose_jobs
from fashion_lit.config.explain import unknown_setting
from fashion_lit.config.groups import (
    choice_files,
    config_dirs,
    is_group,
    parse_override,
    paths_in,
    read_yaml,
)
from fashion_lit.config.overrides import split_jobs
from fashion_lit.config.settings import Config, is_result_neutral
from fashion_lit.config.trainer import OWN_TRAINER_KEYS, TrainerSettings
from fashion_lit.errors import UserError
from fashion_lit.parts.kinds import SEVERAL, holds_part, named_parts

PACKAGE = Path(__file__).resolve().parents[1]
# Where the functions and classes are whose arguments are settings.
SOURCES = ("data", "data/sources", "models", "models/networks")
OPEN_GROUPS = ("launcher",)  # `sweeps.launch` checks it
MAX_BASES = 20  # combinations of choices that are composed
# Kinds of augmentation that `augment.classes` limits to some classes.
AIMED = ("flip", "shift", "rotate", "scale", "shear", "brightness", "contrast", "trivial_augment")
NOTHING_ENDS_EARLY = "it delays early_stopping.patience and trainer.max_time, and neither is set"


def nothing_ends_early(config: Config) -> bool:
    """Return whether no setting can end a run before its last epoch."""
    patience, max_time = config["early_stopping"]["patience"], config["trainer"].get("max_time")
    return patience is None and max_time is None


# (setting, whether it has no effect in a checked configuration, why)
RULES: tuple[tuple[str, Callable[[Config], bool], str], ...] = (
    (
        "optimizer.momentum",
        lambda c: c["scheduler"]["name"] == "one_cycle",
        "scheduler=one_cycle moves it between 0.85 and 0.95; choose another schedule",
    ),
    *(
        (key, lambda c: c["scheduler"].get("num_cycles") == 1, "scheduler.num_cycles is 1")
        for key in ("scheduler.cycle_growth", "scheduler.peak_factor")
    ),
    (
        "trainer.limit_train_batches",
        lambda c: bool(
            c["trainer"].get("overfit_batches") and c["trainer"].get("limit_train_batches")
        ),
        "trainer.overfit_batches limits them",
    ),
    (
        "trainer.limit_val_batches",
        lambda c: bool(
            c["trainer"].get("overfit_batches") and c["trainer"].get("limit_val_batches")
        ),
        "trainer.overfit_batches limits them",
    ),
    (
        "trainer.gradient_clip_algorithm",
        lambda c: not c["trainer"].get("gradient_clip_val"),
        "trainer.gradient_clip_val sets no limit",
    ),
    ("trainer.min_epochs", nothing_ends_early, NOTHING_ENDS_EARLY),
    ("trainer.min_steps", nothing_ends_early, NOTHING_ENDS_EARLY),
    (
        "model.unfreeze_epoch",
        lambda c: (c["model"].get("unfreeze_epoch") or 0) >= c["trainer"]["max_epochs"],
        "the run ends before that epoch, counted from 0",
    ),
    (
        "augment.classes",
        lambda c: not any(c["augment"].get(kind) for kind in AIMED),
        f"no kind that it aims is on ({', '.join(AIMED)})",
    ),
    (
        "augment.until_epoch",
        lambda c: not (c["augment"].get("mixup") or c["augment"].get("cutmix")),
        "neither augment.mixup nor augment.cutmix is on",
    ),
    *(
        (f"augment.{key}", lambda c: not c["augment"].get("random_erase"), "random_erase is off")
        for key in ("random_erase_area", "random_erase_aspect", "random_erase_fill")
    ),
    (
        "model.swa_lr_factor",
        lambda c: c["model"].get("swa_start") is None,
        "model.swa_start is null, so no epoch trains at that rate; choose averaging=swa",
    ),
    (
        "model.reinit_stem",
        lambda c: c["model"].get("reinit_stem") is True and not c["model"]["pretrained"],
        "model.pretrained=false initialises all layers",
    ),
    *(
        (key, lambda c: c.get("teacher") is None, "`teacher` names no run to learn from")
        for key in ("distillation", "distillation.weight", "distillation.temperature")
    ),
)
NAMES = ("optimizer.name", "scheduler.name", "data.name", "model.name", "model.network.name")


def check_effects(config: Config, overrides: Sequence[str], channels: int) -> None:
    """Raise UserError for an override without effect in the checked configuration of a new run.

    Args:
        config: as `schema.check` returns it.
        overrides: as `prepare_overrides` returns them.
        channels: of the images that the configuration describes.
    """
    typed = {parse_override(text).key_or_group for text in overrides}
    if "model.grey_stem" in typed and channels == 3:
        raise UserError("`model.grey_stem` has no effect, because the images are in colour.")
    for key, is_without_effect, reason in RULES:
        if key in typed and is_without_effect(config):
            raise UserError(f"`{key}` has no effect, because {reason}.")


def check_chosen_names(overrides: Sequence[str], base: Config) -> None:
    """Raise UserError for `optimizer.name=adam` where `optimizer=adam` also changes the settings.

    A name alone keeps the settings of the choice before it, which may not fit.

    Args:
        overrides: as `prepare_overrides` returns them.
        base: the configuration that the chosen groups alone give.
    """
    parsed = {o.key_or_group: o for o in map(parse_override, overrides)}
    if {"run_dir", "ckpt_path", "init_from"} & parsed.keys():
        return  # names of recorded settings
    directories = config_dirs(overrides)
    for path in NAMES:
        name = parsed[path].value() if path in parsed else None
        group = path.partition(".")[0]
        node = base[group] if path.count(".") == 1 else base[group].get("network", {})
        files = choice_files(group, directories)
        if not isinstance(name, str) or name not in files or node.get("name") == name:
            continue
        chosen = read_yaml(files[name])
        if (chosen.keys() | chosen.get("network", {}).keys()) != (
            base[group].keys() | base[group].get("network", {}).keys()
        ):
            raise UserError(
                f"`{path}={name}` alone would keep the other settings of `{group}`; choose it by "
                f"{group}={name}."
            )


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
        or override.key_or_group == "plugins"
    ]
    bases = [compose_jobs(job, multirun=False)[0] for job in split_jobs(choosing)[:MAX_BASES]]
    check_chosen_names(overrides, bases[0])
    known = list(dict.fromkeys(path for base in bases for path in paths_in(base)))
    known += [f"trainer.{name}" for name in TrainerSettings.model_fields]
    own = [
        f"{override.key_or_group.removesuffix('.name')}."
        for override in parsed
        if override.key_or_group.endswith(".name") and holds_part(override.key_or_group[:-5])
    ]
    own += [f"{setting}." for base in bases for setting in named_parts(base)]
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
        if groups or path.startswith(tuple(own)) or is_possible(path, known, bases[0]):
            continue
        group, *part = path.split(".")
        if group in SEVERAL and part:
            raise UserError(
                f"Expected `{group}.{part[0]}.name`, the import path of a class, but there is only "
                f"`{path}`."
            )
        if group == "augment" and part[1:] == ["name"]:
            raise UserError(f"Unknown setting `{path}`; did you mean `augment.own.name`?")
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


def check_mode(overrides: Sequence[str], *, multirun: bool) -> None:
    """Raise UserError for settings of a single run in a multirun, and vice versa."""
    given = {o.key_or_group: o for o in map(parse_override, overrides)}
    if multirun and "run_dir" in given:
        raise UserError(
            "`run_dir` is the directory of a single run; in a multirun, use sweep_name=NAME, and "
            "output_root=DIR for the parent of sweeps/NAME."
        )
    if not multirun and "sweep_name" in given:
        raise UserError(
            "`sweep_name` names a multirun; add -m (in Python: call sweep), or use run_dir=DIR for "
            "one run."
        )
    for key in given:
        if not multirun and key.split(".")[0] == "launcher":
            raise UserError(
                f"`{key}` sets how a multirun starts its jobs; add -m (in Python: call sweep)."
            )
    if "run_dir" in given and "output_root" in given:
        raise UserError("`output_root` has no effect beside run_dir; leave out one of them.")
    if multirun:
        check_varied(given)
    if multirun and "test" in given and given["test"].value() is not False:
        raise UserError(
            "Expected `test` to be false in a multirun, whose jobs are compared on validation "
            "images; evaluate the best one with fashion-lit leaderboard --evaluate-best."
        )


def check_varied(given: Mapping[str, Override]) -> None:
    """Raise UserError for several values of a setting that cannot make jobs of their own."""
    for key in [key for key, override in given.items() if override.is_sweep_override()]:
        if key.split(".")[0] == "launcher":
            raise UserError(f"Expected one value of `{key}` in a multirun, but got several.")
        if is_result_neutral(key):
            raise UserError(
                f"Expected one value of `{key}`, which cannot change a result, so that its values "
                "would be one job."
            )
