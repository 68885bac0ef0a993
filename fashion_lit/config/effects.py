"""Refuse settings that were typed, but have no effect beside the others."""

from collections.abc import Callable, Sequence

from fashion_lit.config.groups import choice_files, config_dirs, parse_override, read_yaml
from fashion_lit.config.settings import Config
from fashion_lit.errors import UserError

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
