"""Compose configurations with Hydra, from command-line overrides to plain dicts.

    overrides = prepare_overrides(["optimizer.lr=0.1,0.2"])
    jobs = compose_jobs(overrides, multirun=True)  # two dicts, resolved

`schema.check` validates each of them.
"""

import copy
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import ChoiceSweep
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from fashion_lit.config.groups import (
    CONF_DIR,
    OPTIONAL_GROUPS,
    SEARCH_PATH,
    choice_files,
    config_dirs,
    is_group,
    parse_override,
    paths_in,
    set_by_choice,
)
from fashion_lit.config.overrides import split_jobs
from fashion_lit.config.settings import LOCATION_KEYS, Config, absolute
from fashion_lit.errors import UserError
from fashion_lit.parts.kinds import check_trusted_parts, named_parts, part_fields
from fashion_lit.parts.trust import trusting

# Parts whose settings a class that is named by its import path may not know.
REPLACEABLE = ("optimizer", "scheduler", "model.network")
# Hydra takes no null for a group that is null by default.
NOT_CHOSEN = [f"{group}=null" for group in OPTIONAL_GROUPS]


@contextmanager
def hydra_errors_for_users() -> Iterator[None]:
    """Convert errors of Hydra and OmegaConf to a one-line UserError."""
    try:
        yield
    except OmegaConfBaseException as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        setting = f" of `{error.full_key}`" if error.full_key else ""
        raise UserError(f"Expected a value{setting} that can be resolved, but: {reason}.") from None
    except HydraException as error:
        raise UserError(_without_search_path(error)) from None


def _without_search_path(error: Exception) -> str:
    """Return a message of Hydra as one line, without its list of directories."""
    return " ".join(str(error).partition("Config search path")[0].split())


def compose_jobs(overrides: Sequence[str], *, multirun: bool) -> list[Config]:
    """Compose the configuration of each job of a command, as resolved plain dicts.

    Raises UserError if Hydra cannot compose it, or for `key=a,b` without `multirun`, unless these
    are two teachers.

    Args:
        overrides: overrides returned by `prepare_overrides`.
        multirun: expand `key=a,b` to two jobs.
    """
    if not multirun:
        overrides = with_teachers_in_list(overrides)
    parsed = [parse_override(text) for text in overrides]
    for override in parsed:
        if override.is_sweep_override() and not multirun:
            text = str(override.input_line).lstrip("+")
            key, _, values = text.partition("=")
            one_list = f", or write '{key}=[{values}]' if it is one list"
            raise UserError(
                f"`{text}` holds several values; add -m (in Python: call sweep) to run each of them"
                f"{'' if is_group(key, config_dirs(overrides)) else one_list}."
            )
    jobs = split_jobs(overrides) if multirun else [list(overrides)]
    with hydra_errors_for_users(), _initialized_hydra():
        return [_compose_job(job) for job in jobs]


@contextmanager
def _initialized_hydra() -> Iterator[None]:
    """Initialise Hydra with conf/; a program that calls this one may have initialised its own."""
    theirs, GlobalHydra.instance().hydra = GlobalHydra.instance().hydra, None
    try:
        with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
            yield
    finally:
        GlobalHydra.instance().hydra = theirs


def with_teachers_in_list(overrides: Sequence[str]) -> list[str]:
    """Return a single run's overrides with `teacher=a,b` as the list of two that it means."""
    listed = []
    for text in overrides:
        key, _, places = text.partition("=")
        value = parse_override(text).value() if key.lstrip("+") == "teacher" else None
        several = isinstance(value, ChoiceSweep) and value.simple_form
        listed.append(f"{key}=[{places}]" if several else text)
    return listed


def replaced_settings(overrides: Sequence[str]) -> list[str]:
    """Return the settings that Hydra composes, but that a class named by import path replaces."""
    with hydra_errors_for_users(), initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        config, choices = _compose(overrides)
        kept = paths_in(_with_own_parts(copy.deepcopy(config), choices, overrides))
    return [path for path in paths_in(config) if path not in kept]


def _compose_job(overrides: list[str]) -> Config:
    return _with_own_parts(*_compose(overrides), overrides)


def _compose(overrides: Sequence[str]) -> tuple[Config, dict[str, Any]]:
    """Return the configuration that Hydra composes, and the chosen YAML file of each group."""
    try:
        chosen = [text for text in overrides if text not in NOT_CHOSEN]
        config = compose("train", overrides=chosen, return_hydra_config=True)
    except (HydraException, OmegaConfBaseException):
        raise
    except Exception as error:  # Hydra lets through what its parts raise
        reason = _without_search_path(error)
        raise UserError(f"Expected settings that Hydra can compose, but: {reason}") from None
    instance: Any = HydraConfig.instance()
    previous = instance.cfg
    instance.set_config(config)  # for interpolations such as ${hydra:runtime.choices.model}
    try:
        choices = {str(group): choice for group, choice in config.hydra.runtime.choices.items()}
        with open_dict(config):
            del config["hydra"]
        return to_plain(config), choices
    finally:
        instance.cfg = previous


def _with_own_parts(config: Config, choices: Mapping[str, Any], overrides: Sequence[str]) -> Config:
    """Return a composed configuration without what its classes, named by import path, replace.

    Those are the settings that come from the chosen YAML file of another optimizer, schedule or
    network and that the class does not know; and the name of that network in `run_dir`. What was
    typed, or set by an experiment, stays, and is refused later if it is unknown.

    Args:
        config: the configuration.
        choices: the chosen YAML file of each group, by Hydra.
        overrides: what it was composed from.
    """
    named = {s: name for s, name in named_parts(config).items() if s in REPLACEABLE}
    if not named:
        return config
    typed = {parse_override(text).key_or_group for text in overrides}
    groups = [f"{s.partition('.')[0]}={choices[s.partition('.')[0]]}" for s in named]
    places = [text for text in overrides if text.startswith(f"{SEARCH_PATH}=")]
    before, _ = _compose([*groups, *places])
    with trusting(config["plugins"]):
        check_trusted_parts(config)
        _drop_replaced(config, before, typed)
    network, run_dir = named.get("model.network"), config["run_dir"]
    if network and "run_dir" not in typed and isinstance(run_dir, str):
        start = run_dir.removesuffix(str(choices["model"]))
        config["run_dir"] = start + network.rpartition(".")[2] if start != run_dir else run_dir
    return config


def _drop_replaced(config: Config, before: Config, typed: Collection[str]) -> None:
    """Drop settings of `before` from the parts that classes replace, unless they know them.

    Args:
        config: the configuration, which is changed.
        before: what the settings that were not typed come from.
        typed: the keys that were typed.
    """
    for setting, name in named_parts(config).items():
        part, replaced = _look_up(config, setting), _look_up(before, setting)
        is_replaceable = setting in REPLACEABLE and isinstance(replaced, dict)
        if not is_replaceable or replaced.get("name") == name:
            continue  # there was no such part, or this one
        known = {"name", *part_fields(setting, name)}
        unknown = {k for k in replaced.keys() - known if f"{setting}.{k}" not in typed}
        kept = {k: v for k, v in part.items() if k not in unknown or v != replaced.get(k)}
        _set(config, setting, kept)


def to_plain(config: DictConfig) -> Config:
    """Resolve a composed configuration to plain dicts, lists, numbers, strings and None.

    One teacher or plugin becomes a list, too, and the teachers' paths absolute.
    """
    plain = OmegaConf.to_container(config, resolve=True)
    assert isinstance(plain, dict)
    settings = {str(key): value for key, value in plain.items()}
    for key in ("run_dir", "output_root"):
        if isinstance(settings.get(key), str):
            settings[key] = os.path.expanduser(settings[key])  # noqa: PTH111
    if (teachers := settings.get("teacher")) is not None:
        places = teachers if isinstance(teachers, list) else [teachers]
        settings["teacher"] = [absolute(place) for place in places]
    if isinstance(settings.get("plugins"), str):
        settings["plugins"] = [settings["plugins"]]
    return settings


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
    directories = config_dirs(overrides)
    if any(is_group(key, directories) for key in keys):
        return {key: value for key, value in composed.items() if key not in LOCATION_KEYS}
    amended = copy.deepcopy(recorded)
    for key in keys:
        if key.split(".")[0] not in (*LOCATION_KEYS, "hydra"):
            path = _known_part(_known_part(key, composed), amended)
            _set(amended, path, _look_up(composed, path))
    return amended


def adopt(recorded: Config, overrides: Sequence[str], composed: Config) -> Config:
    """Apply overrides to recorded settings, config groups too, and return the result.

    A chosen group replaces the recorded one and what else its file sets. An experiment describes a
    whole run: then `composed` replaces the recorded settings, without LOCATION_KEYS.

    Args:
        recorded: settings of a run or a checkpoint.
        overrides: overrides returned by `prepare_overrides`, each with one value.
        composed: configuration that the overrides give for a new run.
    """
    adopted = copy.deepcopy(recorded)
    directories = config_dirs(overrides)
    for override in map(parse_override, overrides):
        key = override.key_or_group
        if key == "experiment":
            return {key: value for key, value in composed.items() if key not in LOCATION_KEYS}
        paths = [key]
        if is_group(key, directories):
            file = choice_files(key, directories).get(str(override.value()))
            paths = [key] * (key in composed) + (set_by_choice(key, file) if file else [])
        for path in paths:
            if path.split(".")[0] not in (*LOCATION_KEYS, "hydra"):
                known = _known_part(_known_part(path, composed), adopted)
                _set(adopted, known, _look_up(composed, known))
    with trusting(composed["plugins"]):
        check_trusted_parts(adopted)
        _drop_replaced(adopted, recorded, {parse_override(text).key_or_group for text in overrides})
    return adopted


def _known_part(path: str, config: Config) -> str:
    """Return a dotted path as far as a configuration has it: class weights may be a list there."""
    node: Any = config
    parts = path.split(".")
    for length, key in enumerate(parts):
        if not isinstance(node, dict):
            return ".".join(parts[:length])
        node = node.get(key, {})
    return path


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
