"""Check the overrides of a command line, `key=value`, and bring them into the form Hydra composes.

prepare_overrides(["optimizer=adam", "trainer.max_steps=9"])  # […, "++trainer.max_steps=9"]
"""

from collections.abc import Mapping, Sequence
from itertools import product
from math import ceil, prod
from pathlib import Path

from hydra.core.override_parser.types import Glob, Override, QuotedString, RangeSweep

from fashion_lit.config.explain import unknown_setting
from fashion_lit.config.groups import (
    CONF_DIR,
    MAIN_FILE,
    OPTIONAL_GROUPS,
    PLACES,
    SEARCH_PATH,
    SEVERAL_GROUPS,
    SPACES,
    SWEEP,
    choice_files,
    config_dirs,
    default_groups,
    default_settings,
    is_group,
    parse_override,
    paths_in,
    read_yaml,
)
from fashion_lit.errors import UserError
from fashion_lit.parts.kinds import name_setting
from fashion_lit.parts.trust import names_of
from fashion_lit.text import did_you_mean, quote_command, quote_value, shorten

MAX_JOBS = 10_000  # of one multirun
# What to use instead of settings of Hydra itself, which only composes the configuration here.
HYDRA_SETTINGS = {
    "hydra.mode": "-m for a multirun",
    "hydra.run": "run_dir=DIR",
    "hydra.sweep": "sweep_name=NAME and output_root=DIR, which give output_root/sweeps/NAME",
    "hydra.launcher": "launcher=local, parallel or slurm",
    "hydra.sweeper": "-m for all combinations of values, or fashion-lit search",
}


def prepare_overrides(overrides: Sequence[str]) -> list[str]:
    """Check and normalise command-line overrides.

    Raises UserError for a malformed override or an unknown choice of a config group. Any other key
    is accepted with or without `+`, so that a Trainer argument that is not in train.yaml needs no
    `+`; `schema.check` validates it.
    """
    prepared = []
    directories = config_dirs(overrides)
    keys = {text.lstrip("+").partition("=")[0] for text in overrides}
    if "data" not in keys and any(key.startswith("data.source.") for key in keys):
        overrides = ["data=own", *overrides]
    for text in expand(overrides, SWEEP, SWEEP):
        override = parse_override(text)
        key = override.get_key_element().lstrip("+~")
        check_key(key, override)
        if override.is_delete():
            check_deletion(key, text)
            prepared.append(text)
        elif is_group(key, directories):
            value = chosen_value(key, override, directories)
            prepared.append(f"{'' if key in default_groups() else '+'}{key}={value}")
        elif "/" in key or "@" in key or key == SEARCH_PATH:
            prepared.append(text)
        else:
            check_is_no_glob(key, override)
            prepared.append("++" + (as_text(key, text, override) or text.lstrip("+")))
    return prepared


def as_text(key: str, text: str, override: Override) -> str | None:
    """Return an override whose value, a number or truth value as typed, is text; None for others.

    Only for PLACES: a sweep may be called 007. Raises UserError for several values, an empty one,
    or ???, which stands for a missing value in Hydra.
    """
    if key not in PLACES:
        return None
    if override.is_sweep_override():
        if key in ("ckpt_path", "init_from", "teacher"):
            return None
        raise UserError(f"Expected one `{key}`, but got several: {shorten(text)}.")
    value = override.value()
    if str(value).strip() in ("", "???"):
        raise UserError(f"Expected a name or a path for `{key}`, but got {str(value)!r}.")
    is_word = isinstance(value, bool | int | float)
    return f"{key}={quote_value(text.partition('=')[2])}" if is_word else None


def check_key(key: str, override: Override) -> None:
    """Raise UserError for a setting of Hydra or of another command."""
    if key in (SPACES, "space"):
        raise UserError(
            f"`{key}` names a search space, which only fashion-lit search uses; run "
            f"fashion-lit search space={override.get_value_element_as_str()}."
        )
    if "@" in override.get_key_element():
        raise UserError(
            f"Expected `{shorten(override.get_key_element())}` without a package (@…), which has "
            "no use here; type key=value."
        )
    if key == "plugins" and isinstance(override.value(), dict):
        names_of(override.value())  # which Hydra cannot merge
    if not key:
        raise UserError("Expected a setting before the `=`, as in optimizer.lr=0.1.")
    if key == "hydra" or (key.startswith(("hydra/", "hydra.")) and key != SEARCH_PATH):
        start = ".".join(key.replace("/", ".").split(".")[:2])
        instead = HYDRA_SETTINGS.get(start)
        raise UserError(
            f"`{shorten(key)}` has no effect, because Hydra only composes the configuration; "
            + (f"use {instead}." if instead else "leave it out.")
        )


def check_deletion(key: str, text: str) -> None:
    """Raise UserError for `~key` of a setting that every run has."""
    if key.startswith(("trainer.", *(f"{group}." for group in SEVERAL_GROUPS))):
        return
    if key in OPTIONAL_GROUPS:
        return
    main = read_yaml(CONF_DIR / MAIN_FILE)
    group = main.get(key)
    if key in default_groups():
        remedy = f"choose another by {key}=NAME"
    elif isinstance(group, dict):
        remedy = f"give its settings other values: {', '.join(paths_in(group, f'{key}.'))}"
    else:
        remedy = f"give it a value by {shorten(key)}=VALUE"
    if not any(name == key or name.startswith(f"{key}.") for name in default_settings()):
        raise UserError(unknown_setting(key, default_settings()))
    raise UserError(f"`{shorten(text)}` would remove a setting that every run has; {remedy}.")


def check_is_no_glob(key: str, override: Override) -> None:
    """Raise UserError for glob(…) as the value of a setting."""
    if isinstance(override.value(), Glob):
        raise UserError(
            f"Expected values for `{key}`, but got glob(…), which chooses among the files of a "
            "group, as in optimizer=glob(*)."
        )


def chosen_value(
    group: str, override: Override, directories: Sequence[Path], label: str = ""
) -> str:
    """Return the value of a config group, with glob(…) written as the choices that it matches.

    Raises UserError unless every value is one of the group's choices; `label` is the group's name
    in its message, if it is typed by another one.
    """
    label = label or group
    files = choice_files(group, directories)
    known = [*files, *(["null"] if group in OPTIONAL_GROUPS else [])]
    value = override.value()
    if isinstance(value, Glob):
        if not (matched := value.filter(list(files))):
            raise UserError(
                f"Expected glob(…) to match one of {', '.join(files)}, but it matches none of the "
                f"choices of `{group}`."
            )
        return ",".join(matched)
    if override.is_sweep_override() and not override.is_discrete_sweep():
        raise UserError(
            f"Expected `{group}` to be one of {', '.join(known)}, or several as in "
            f"{group}=a,b, but got a range."
        )
    if override.is_sweep_override():
        values = list(override.sweep_string_iterator())
    elif isinstance(value, QuotedString):
        values = [value.text]
    elif isinstance(value, list) and group in SEVERAL_GROUPS:
        values = [str(name) for name in value]
    else:
        values = [override.get_value_element_as_str()]
    for name in values:
        if name not in known:
            setting = name_setting(group)
            other = f" (or {setting}=PACKAGE.CLASS)" if setting else ""
            raise UserError(
                f"Expected `{label}` to be one of {', '.join(known)}{other}, but got "
                f"{shorten(name)!r}"
                f"{did_you_mean(name, known, f'{label}=') or '.'}"
            )
    return f"[{','.join(values)}]" if isinstance(value, list) else ",".join(values)


def expand(overrides: Sequence[str], word: str, folder: str) -> list[str]:
    """Replace WORD=NAME by the overrides in FOLDER/NAME.yaml.

    Other overrides in `overrides` take precedence over those of the file. Raises UserError if there
    is no such file, or if several are named.
    """
    chosen = [text for text in overrides if text.lstrip("+").startswith(f"{word}=")]
    if not chosen:
        return list(overrides)
    typed = [text for text in overrides if text not in chosen]
    override = parse_override(chosen[-1].lstrip("+"))
    if len(chosen) > 1 or override.is_sweep_override():
        raise UserError(
            f"Expected one `{word}`, but got {shorten(' '.join(chosen))}; type one command for "
            "each, with the same sweep_name."
        )
    directories = config_dirs(overrides)
    name = chosen_value(folder, override, directories, label=word)
    settings = flat(read_yaml(choice_files(folder, directories)[name]))
    keys = {parse_override(text).key_or_group for text in typed}
    return typed + [f"{key}={value}" for key, value in settings.items() if key not in keys]


def flat(settings: Mapping[str, object], prefix: str = "") -> dict[str, str]:
    """Return {"optimizer.lr": "0.1,0.2"} of settings whose keys are dotted or nested."""
    found = {}
    for key, value in settings.items():
        if isinstance(value, dict):
            found |= flat(value, f"{prefix}{key}.")
        else:
            words = {None: "null", True: "true", False: "false"}
            is_word = value is None or isinstance(value, bool)
            found[f"{prefix}{key}"] = words[value] if is_word else str(value)
    return found


def split_jobs(overrides: Sequence[str]) -> list[list[str]]:
    """Return the overrides of each job of a multirun: the Cartesian product of all `key=a,b`.

    Raises UserError for a continuous range of values, such as an interval, and unless there are 1
    to MAX_JOBS jobs.
    """
    choices = [_values(override) for override in map(parse_override, overrides)]
    count = prod(map(len, choices))
    if count > MAX_JOBS:
        raise UserError(f"Expected at most {MAX_JOBS:,} jobs, but these values give {count:,}.")
    return [list(job) for job in product(*choices)]


def _values(override: Override) -> list[str]:
    """Return an override with each of its values."""
    text = str(override.input_line)
    if not override.is_sweep_override():
        return [text]
    if not override.is_discrete_sweep():
        typed = text.lstrip("+")
        raise UserError(
            f"`{typed}` is a continuous range; with -m, use values such as a,b or range(1,4), or "
            f"let Optuna choose: {quote_command('fashion-lit', 'search', typed)}."
        )
    value = override.value()
    if isinstance(value, RangeSweep):
        count = _length(value)
        if not 0 < count <= MAX_JOBS:
            raise UserError(
                f"Expected `{shorten(text.lstrip('+'))}` to give 1 to {MAX_JOBS:,} values, but it "
                f"gives {count:,}."
            )
    key = override.get_key_element()
    return [f"{key}={value}" for value in override.sweep_string_iterator()]


def _length(values: RangeSweep) -> float:
    """Return the number of values of a range; infinity if its step is 0."""
    start, stop = values.start or 0, values.stop or 0
    return max(0, ceil((stop - start) / values.step)) if values.step else float("inf")
