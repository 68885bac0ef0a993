"""Compose configurations with Hydra, from command-line overrides to plain dicts.

    overrides = prepare_overrides(["optimizer.lr=0.1,0.2"])
    jobs = compose_jobs(overrides, multirun=True)  # two dicts, resolved

`schema.check` validates each of them.
"""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from fashion_lit.config.explain import did_you_mean
from fashion_lit.config.settings import LOCATION_KEYS, Config
from fashion_lit.errors import UserError
from fashion_lit.text import shorten

_PACKAGE = Path(__file__).resolve().parents[1]
CONF_DIR = next(d for d in (_PACKAGE / "conf", _PACKAGE.parent / "conf") if d.is_dir())
OPTIONAL_GROUPS = ("experiment", "debug")
# Groups that Hydra does not compose: search spaces, and overrides of a multirun.
SPACES = "search"
SWEEP = "sweep"


@contextmanager
def hydra_errors_for_users() -> Iterator[None]:
    """Convert errors of Hydra and OmegaConf to a one-line UserError."""
    try:
        yield
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(" ".join(f"{error}".split())) from None


def prepare_overrides(overrides: Sequence[str]) -> list[str]:
    """Check and normalise command-line overrides.

    Raises UserError for a malformed override or an unknown choice of a config group. Any other key
    is accepted with or without `+`, so that a Trainer argument that is not in train.yaml needs no
    `+`; `schema.check` validates it.
    """
    prepared = []
    for text in expand(overrides, SWEEP, SWEEP):
        override = parse_override(text)
        key = override.get_key_element().lstrip("+~")
        if key == SPACES:
            raise UserError(
                f"`{key}` names a search space, which only fashion-lit search uses; run "
                f"fashion-lit search space={override.get_value_element_as_str()}."
            )
        if override.is_delete() and not (key.startswith("trainer.") or key in OPTIONAL_GROUPS):
            raise UserError(
                f"`{shorten(text)}` would remove a setting that every run has; give it a value by "
                f"{shorten(key)}=VALUE."
            )
        if is_group(key) and not override.is_delete():
            check_choices(key, override)
            prepared.append(text.lstrip("+"))
        elif override.is_delete() or "/" in key or "@" in key:
            prepared.append(text)
        else:
            prepared.append("++" + text.lstrip("+"))
    return prepared


def expand(overrides: Sequence[str], word: str, folder: str) -> list[str]:
    """Replace WORD=NAME by the overrides in conf/FOLDER/NAME.yaml.

    Other overrides in `overrides` take precedence over those of the file. Raises UserError if there
    is no such file.
    """
    chosen = [text for text in overrides if text.startswith(f"{word}=")]
    typed = [text for text in overrides if text not in chosen]
    keys = {parse_override(text).key_or_group for text in typed}
    for text in chosen:
        check_choices(folder, parse_override(text))
        settings = OmegaConf.load(CONF_DIR / folder / f"{text.partition('=')[2]}.yaml")
        typed += [f"{key}={value}" for key, value in settings.items() if key not in keys]
    return typed


def is_group(key: str) -> bool:
    """Return whether `key` is a config group, a folder of conf/."""
    return "." not in key and (CONF_DIR / key).is_dir()


def parse_override(text: str) -> Override:
    """Parse an override such as `key=value`; raise UserError if it is malformed."""
    try:
        return OverridesParser.create().parse_override(text)
    except (HydraException, ValueError):
        raise UserError(
            f"Expected an override of the form key=value, but got `{shorten(text)}`; quote special "
            "characters, as in 'run_dir=\"a=b\"', and write lists without spaces, as in "
            "key=[1,2]."
        ) from None


def check_choices(group: str, override: Override) -> None:
    """Raise UserError unless every value of a config group is one of its YAML files."""
    choices = sorted(path.stem for path in (CONF_DIR / group).glob("*.yaml"))
    if group in OPTIONAL_GROUPS:
        choices.append("null")
    if override.is_sweep_override():
        values = list(override.sweep_string_iterator())
    else:
        values = [override.get_value_element_as_str()]
    for value in values:
        if value not in choices:
            raise UserError(
                f"Expected `{group}` to be one of {', '.join(choices)}, but got {value!r}"
                f"{did_you_mean(value, choices, f'{group}=') or '.'}"
            )


def compose_jobs(overrides: Sequence[str], *, multirun: bool) -> list[Config]:
    """Compose the configuration of each job of a command, as resolved plain dicts.

    Raises UserError if Hydra cannot compose it, or for `key=a,b` without `multirun`.

    Args:
        overrides: overrides returned by `prepare_overrides`.
        multirun: expand `key=a,b` to two jobs.
    """
    parsed = [parse_override(text) for text in overrides]
    for override in parsed:
        if override.is_sweep_override() and not multirun:
            text = str(override.input_line).lstrip("+")
            key, _, values = text.partition("=")
            raise UserError(
                f"`{text}` holds several values; add -m to run each of them, or write "
                f"'{key}=[{values}]' if it is one list."
            )
    jobs = split_jobs(overrides) if multirun else [list(overrides)]
    with hydra_errors_for_users(), initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        return [_compose_job(job) for job in jobs]


def split_jobs(overrides: Sequence[str]) -> list[list[str]]:
    """Return the overrides of each job of a multirun: the Cartesian product of all `key=a,b`.

    Raises UserError for a continuous range of values, such as an interval.
    """
    choices = []
    for override in map(parse_override, overrides):
        if not override.is_sweep_override():
            choices.append([str(override.input_line)])
        elif override.is_discrete_sweep():
            key = override.get_key_element()
            choices.append([f"{key}={value}" for value in override.sweep_string_iterator()])
        else:
            text = str(override.input_line).lstrip("+")
            raise UserError(
                f"`{text}` is a continuous range, which only fashion-lit search accepts; with -m, "
                "use values such as a,b or range(1,4)."
            )
    return [list(job) for job in product(*choices)]


def _compose_job(overrides: list[str]) -> Config:
    try:
        config = compose("train", overrides=overrides, return_hydra_config=True)
    except (HydraException, OmegaConfBaseException):
        raise
    except Exception as error:  # Hydra lets through what its parts raise
        reason = " ".join(str(error).split())
        raise UserError(f"Expected settings that Hydra can compose, but: {reason}") from None
    instance: Any = HydraConfig.instance()
    previous = instance.cfg
    instance.set_config(config)  # for interpolations such as ${hydra:runtime.choices.model}
    try:
        with open_dict(config):
            del config["hydra"]
        return to_plain(config)
    finally:
        instance.cfg = previous


def to_plain(config: DictConfig) -> Config:
    """Resolve a composed configuration to plain dicts, lists, numbers, strings and None."""
    plain = OmegaConf.to_container(config, resolve=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def amend(recorded: Config, overrides: Sequence[str], composed: Config) -> Config:
    """Apply command-line overrides to recorded settings and return the result.

    If an override chooses a config group (model=, experiment=), the command describes a whole run
    and `composed` replaces the recorded settings, without LOCATION_KEYS.

    Args:
        recorded: settings of a run or a checkpoint.
        overrides: overrides returned by `prepare_overrides`.
        composed: configuration that the overrides give for a new run.
    """
    keys = [parse_override(text).key_or_group for text in overrides]
    if any(is_group(key) for key in keys):
        return {key: value for key, value in composed.items() if key not in LOCATION_KEYS}
    amended = copy.deepcopy(recorded)
    for key in keys:
        if key.split(".")[0] not in (*LOCATION_KEYS, "hydra"):
            _set(amended, key, _look_up(composed, key))
    return amended


def _look_up(config: Config, path: str) -> Any:
    node: Any = config
    for key in path.split("."):
        node = node[key] if isinstance(node, dict) and key in node else "absent"
    return copy.deepcopy(node)


def _set(config: Config, path: str, value: Any) -> None:
    *parents, last = path.split(".")
    node = config
    for key in parents:
        node = node.setdefault(key, {})
    if value == "absent":
        node.pop(last, None)
    else:
        node[last] = value


def check_mode(overrides: Sequence[str], *, multirun: bool) -> None:
    """Raise UserError for settings of a single run in a multirun, and vice versa."""
    given = {o.key_or_group: o for o in map(parse_override, overrides)}
    if multirun and "run_dir" in given:
        raise UserError(
            "`run_dir` is the directory of a single run; in a multirun, use sweep_name=NAME, and "
            "output_root=DIR for the parent of sweeps/NAME."
        )
    if not multirun and "sweep_name" in given:
        raise UserError("`sweep_name` names a multirun; add -m, or use run_dir=DIR for one run.")
    for key in given:
        if not multirun and key.split(".")[0] == "launcher":
            raise UserError(f"`{key}` sets how a multirun starts its jobs; add -m.")
        if key.startswith(("hydra/", "hydra.")):
            raise UserError(
                f"`{key}` has no effect, because Hydra only composes the configuration; choose how "
                "jobs start with launcher=local, parallel or slurm, and a run's directory with "
                "run_dir=DIR."
            )
    if multirun and "test" in given and given["test"].value() is not False:
        raise UserError(
            "Expected `test` to be false in a multirun, whose jobs are compared on validation "
            "images; evaluate the best one with fashion-lit leaderboard --evaluate-best."
        )
