"""The groups of the configuration, such as `model`, and their choices, the YAML files in a folder.

They are in conf/ and in the user's own configuration directories, which `--config-dir` or
`hydra.searchpath` names:

    overrides = with_config_dirs(["model=my_net"], ["mine"])  # one override more
    choice_files("model", config_dirs(overrides))  # {"fast_cnn": Path(…), …, "my_net": Path(…)}
"""

import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from fashion_lit.errors import UserError
from fashion_lit.text import quote_value, shorten

_PACKAGE = Path(__file__).resolve().parents[1]
CONF_DIR = next(d for d in (_PACKAGE / "conf", _PACKAGE.parent / "conf") if d.is_dir())
MAIN_FILE = "train.yaml"
GLOBAL_GROUPS = ("averaging", "experiment", "debug")  # their files set settings anywhere
SEVERAL_GROUPS = ("callbacks", "loggers")  # which may have several choices, as in callbacks=[a,b]
OPTIONAL_GROUPS = (*GLOBAL_GROUPS, *SEVERAL_GROUPS)
# Groups that Hydra does not compose: search spaces, and overrides of a multirun.
SPACES = "search"
SWEEP = "sweep"
SEARCH_PATH = "hydra.searchpath"
# Settings whose values are names and paths, also where they look like a number.
PLACES = ("sweep_name", "run_dir", "output_root", "ckpt_path", "init_from", "teacher")
SEVERAL = re.compile(r"(\[?)([^\[\](){}\"']+)(\]?)")  # places in Hydra's grammar, without quotes
PACKAGE_HEADER = re.compile(r"^# @package (\S+)", re.MULTILINE)


def parse_override(text: str) -> Override:
    """Parse an override such as `key=value`; raise UserError if it is malformed."""
    try:
        return OverridesParser.create().parse_override(text)
    except (HydraException, ValueError, RecursionError):
        raise UserError(
            f"Expected an override of the form key=value, but got `{shorten(text)}`; quote special "
            "characters, as in 'run_dir=\"a=b\"', and write lists without spaces, as in "
            "key=[1,2]."
        ) from None


def with_config_dirs(overrides: Sequence[str], given: Sequence[str]) -> list[str]:
    """Return the overrides with one `hydra.searchpath` that names all own directories.

    Values of PLACES and names of classes are written so that Hydra's grammar accepts them, as with
    letters other than ASCII.

    Args:
        overrides: overrides as typed, perhaps with `hydra.searchpath=[…]`.
        given: directories that `--config-dir` names.

    Raises UserError for a directory whose files would not be used.
    """
    overrides = [_in_hydras_grammar(text) for text in overrides]
    is_path = [text.lstrip("+").startswith(f"{SEARCH_PATH}=") for text in overrides]
    named = list(given)
    for text in (text for text, chosen in zip(overrides, is_path, strict=True) if chosen):
        value = parse_override(text).value()
        named += [str(item) for item in (value if isinstance(value, list) else [value])]
    others = [text for text, chosen in zip(overrides, is_path, strict=True) if not chosen]
    if not named:
        return others
    directories = dict.fromkeys(_own_directory(name) for name in named)
    for directory in directories:
        _check_directory(directory)
    urls = ",".join(quote_value(f"file://{path.as_posix()}") for path in directories)
    return [*others, f"{SEARCH_PATH}=[{urls}]"]


def _in_hydras_grammar(text: str) -> str:
    """Return an override that Hydra can parse: a quoted place, a class's name as its tag."""
    key, equals, value = text.partition("=")
    if key.lstrip("+").startswith(("model.class_weights.", "data.class_sampling.")):
        return f"{re.sub('[/ ]', '_', key)}{equals}{value}"
    if key.lstrip("+") not in PLACES or not value or value[0] in "\"'":
        return text
    if key.lstrip("+") == "teacher" and (several := SEVERAL.fullmatch(value)):
        start, places, end = several.groups()
        return f"{key}={start}{','.join(map(_as_place, places.split(',')))}{end}"
    try:
        parse_override(text)
    except UserError:
        return f"{key}={quote_value(value)}"
    return text


def _as_place(text: str) -> str:
    """Return one of several places, quoted if Hydra would not read it as text; null stays null."""
    try:
        is_text = isinstance(parse_override(f"teacher={text}").value(), str | None)
    except UserError:
        is_text = False
    return text if is_text else quote_value(text)


def _own_directory(name: str) -> Path:
    path = name.removeprefix("file://")
    if "://" in path:
        raise UserError(
            f"Expected the folders of own configurations, but got {shorten(name)!r}; give their "
            "paths."
        )
    return Path(path).expanduser().absolute()


def _check_directory(directory: Path) -> None:
    if not directory.is_dir():
        raise UserError(
            f"Expected a directory with own configurations, but there is no {directory}."
        )
    files = sorted(path.relative_to(directory) for path in directory.rglob("*.yaml"))
    in_groups = [path for path in files if len(path.parts) > 1]
    if not in_groups:
        raise UserError(
            f"Expected groups in {directory}, folders such as experiment/ with YAML files, but "
            "there are none."
        )
    for path in in_groups:
        _check_file(directory / path, path.parts[0])
    unused = [path for path in files if len(path.parts) == 1 or (CONF_DIR / path).exists()]
    if unused:
        raise UserError(
            f"{directory / unused[0]} would not be used, because "
            + (
                "fashion-lit has a choice of this name; rename the file."
                if len(unused[0].parts) > 1
                else "it is in no group; put it into a folder such as experiment/."
            )
        )


def _check_file(path: Path, group: str) -> None:
    """Raise UserError for a choice with settings of Hydra, or an experiment without its header."""
    if "hydra" in read_yaml(path):
        raise UserError(f"Expected no settings of Hydra in {path}, which would have no effect.")
    header = PACKAGE_HEADER.search(path.read_text(encoding="utf-8"))
    if group in GLOBAL_GROUPS and (header is None or header[1] != "_global_"):
        raise UserError(f"Expected {path} to begin with the line `# @package _global_`.")


def config_dirs(overrides: Sequence[str]) -> list[Path]:
    """Return the directories of all groups: conf/, then the user's own."""
    found = [CONF_DIR]
    for text in overrides:
        if text.lstrip("+").startswith(f"{SEARCH_PATH}="):
            value: Any = parse_override(text).value()
            found += [Path(str(url).removeprefix("file://")) for url in value]
    return found


def is_group(key: str, directories: Sequence[Path]) -> bool:
    """Return whether `key` is a group, a folder in one of the directories."""
    return "." not in key and any((folder / key).is_dir() for folder in directories)


def choice_files(group: str, directories: Sequence[Path]) -> dict[str, Path]:
    """Return {choice: its file} of a group, sorted by name."""
    files = {
        path.relative_to(folder / group).with_suffix("").as_posix(): path
        for folder in directories
        for path in (folder / group).rglob("*.yaml")
    }
    return dict(sorted(files.items()))


def read_yaml(path: Path) -> dict[str, Any]:
    """Return a YAML file of settings as a dict; raises UserError if it is none."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"Expected YAML in {path}, but {shorten(reason, 200)}.") from None
    if content is None:
        return {}
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise UserError(f"Expected settings as key: value in {path}, but got another structure.")
    return content


def paths_in(settings: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Return the dotted paths of all settings in nested groups; an empty group is a setting."""
    found = []
    for key, value in settings.items():
        path = f"{prefix}{key}"
        found += paths_in(value, f"{path}.") if isinstance(value, dict) and value else [path]
    return found


@cache
def default_groups() -> frozenset[str]:
    """Return the groups that the main configuration's list of defaults names."""
    entries = read_yaml(CONF_DIR / MAIN_FILE)["defaults"]
    return frozenset(key for entry in entries if isinstance(entry, dict) for key in entry)


def set_by_choice(group: str, path: Path) -> list[str]:
    """Return what a choice's file sets: dotted settings, and groups that it overrides whole."""
    settings = read_yaml(path)
    defaults = settings.pop("defaults", [])
    header = PACKAGE_HEADER.search(path.read_text(encoding="utf-8"))
    package = header[1] if header else group
    entries = [entry for entry in defaults if isinstance(entry, dict)]
    groups = [str(key).split()[-1].lstrip("/") for entry in entries for key in entry]
    own = paths_in(settings, "" if package == "_global_" else f"{package}.")
    return groups + own


@cache
def default_settings() -> list[str]:
    """Return the dotted settings of the default run."""
    main = read_yaml(CONF_DIR / MAIN_FILE)
    entries = [entry for entry in main.pop("defaults") if isinstance(entry, dict)]
    main.pop("hydra")
    chosen = [pair for entry in entries for pair in entry.items()]
    own = [CONF_DIR / group / f"{name}.yaml" for group, name in chosen]
    return paths_in(main) + [
        path
        for (group, _), file in zip(chosen, own, strict=True)
        if file.exists()
        for path in set_by_choice(group, file)
    ]
