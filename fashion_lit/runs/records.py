"""Read the small files of a run, which may be damaged or a stranger's: bounded and checked.

Each reader raises UserError, which names the file and what is wrong with it. Nothing is executed,
and no file can take more than `MAX_BYTES` or `MAX_VALUES` of memory and time.

This module does not import torch.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import yaml

from fashion_lit.errors import UserError
from fashion_lit.files import read_text

YAML_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the C parser is ten times as fast
DIGEST_MARK = "# sha256: "  # config.yaml ends with this and the digest of all before it
STATUS_DIGEST = "sha256"  # the key of status.json that holds the digest of the others
MAX_BYTES = 1_000_000  # of one file; a run writes about 5,000
MAX_VALUES = 20_000  # in one configuration, with what YAML's aliases repeat
State = Literal["running", "interrupted", "failed", "pruned", "finished"]


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON file that holds one object."""
    text = read_text_of_run(path)
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"Expected JSON in {path}, but it cannot be read ({error}).") from None
    if not isinstance(found, dict):
        raise UserError(f"Expected a JSON object in {path}, but got {_kind(found)}.")
    return found


def read_metrics(path: Path) -> dict[str, float]:
    """Read metrics.json, {name: finite number}."""
    metrics = read_object(path)
    for name, value in metrics.items():
        if not is_finite_number(value):
            raise UserError(f"Expected numbers in {path}, but {name!r} is {_shorten(value)}.")
    return {name: float(value) for name, value in metrics.items()}


def read_status(path: Path) -> dict[str, Any]:
    """Read status.json: "state" is a State, "epoch", "step" and "seconds" are numbers.

    Its digest is checked, which earlier versions did not write.
    """
    status = read_object(path)
    digest = status.pop(STATUS_DIGEST, None)
    if digest is not None and digest != digest_of_object(status):
        raise UserError(f"Expected {path} as the run wrote it, but it was changed since.")
    defaults = {"epoch": 0, "step": 0, "seconds": 0, "reason": "", "host": "?", "process": "?"}
    status = defaults | status
    numbers = [status[key] for key in ("epoch", "step", "seconds")]
    if (
        status.get("state") not in get_args(State)
        or not all(is_finite_number(n) and n >= 0 for n in numbers)
        or not isinstance(status["reason"], str)
        or not isinstance(status.get("files", {}), dict)
    ):
        raise UserError(f"Expected the status of a run in {path}, but it is not one.")
    return status


def digest_of_object(content: Mapping[str, Any]) -> str:
    """Return the SHA-256 of an object's JSON text."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def read_settings(path: Path, *, needs_digest: bool = False) -> dict[str, Any]:
    """Read config.yaml and check its digest, which earlier versions did not write."""
    text = read_text_of_run(path)
    intact = is_intact(text)
    if intact is False or (intact is None and needs_digest):
        raise _unusable(path, "they were changed after the run wrote them")
    try:
        config = yaml.load(text, YAML_LOADER)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise _unusable(path, f"they cannot be read ({str(error).splitlines()[0]})") from None
    if not isinstance(config, dict) or not config:
        raise _unusable(path, "it has none")
    if (problem := _find_problem(config)) is not None:
        raise _unusable(path, problem)
    return config


def is_intact(text: str) -> bool | None:
    """Return whether settings match the digest at their end; None without a digest."""
    body, mark, digest = text.rpartition(DIGEST_MARK)
    if not mark:
        return None
    return hashlib.sha256(body.encode()).hexdigest() == digest.strip()


def with_config_digest(text: str) -> str:
    """Return the text of config.yaml with its digest at the end, as a comment."""
    return f"{text}{DIGEST_MARK}{hashlib.sha256(text.encode()).hexdigest()}\n"


def is_finite_number(value: object) -> bool:
    """Return whether a value is an int or float (no bool), finite, and fits into a float."""
    try:
        return (
            isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        )
    except OverflowError:  # an int beyond 1.8e308
        return False


def _find_problem(config: Mapping[str, Any]) -> str | None:
    """Describe what a run cannot have recorded; None if there is nothing."""
    left = [MAX_VALUES]
    if not _is_plain(config, left, depth=0):
        return "they hold other values than numbers, texts, lists and groups, or too many"
    for group in ("data", "model", "optimizer", "scheduler", "trainer", "augment"):
        if not isinstance(config.get(group, {}), dict):
            return f"`{group}` is {_shorten(config[group])} instead of a group of settings"
    max_epochs = config.get("trainer", {}).get("max_epochs")
    for name, value in (("seed", config.get("seed")), ("trainer.max_epochs", max_epochs)):
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**63:
            return f"`{name}` is {_shorten(value)} instead of a whole number"
    return None


def _is_plain(value: object, left: list[int], *, depth: int) -> bool:
    """Return whether a value is as JSON has them, and counts it; False for endless ones."""
    left[0] -= 1
    if left[0] < 0 or depth > 20:
        return False
    if isinstance(value, dict):
        return all(
            isinstance(key, str) and _is_plain(item, left, depth=depth + 1)
            for key, item in value.items()
        )
    if isinstance(value, list):
        return all(_is_plain(item, left, depth=depth + 1) for item in value)
    return value is None or isinstance(value, str | bool) or is_finite_number(value)


def read_text_of_run(path: Path) -> str:
    """Read a text file that is regular and at most `MAX_BYTES` large."""
    try:
        if not path.is_file():
            state = "is not a file" if path.exists() else "is missing"
            raise UserError(f"Expected a file of a run, but {path} {state}.")
        if (size := path.stat().st_size) > MAX_BYTES:
            raise UserError(f"Expected a file of a run, but {path} is too large ({size:,} bytes).")
        return read_text(path)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise UserError(
            f"Expected a file of a run, but {path} cannot be read ({reason})."
        ) from None


def _unusable(path: Path, problem: str) -> UserError:
    return UserError(
        f"Expected the settings of a run in {path}, but {problem}; restore the file, or use "
        "another directory."
    )


def _kind(value: object) -> str:
    return "nothing" if value is None else f"a {type(value).__name__}"


def _shorten(value: object) -> str:
    """Return a value as text, short even if it is a huge or endless one."""
    if isinstance(value, dict | list):
        return _kind(value)
    text = f"{value:.3g}" if isinstance(value, float) else ""
    if isinstance(value, int) and not isinstance(value, bool):
        text = str(value) if abs(value) < 10**20 else "a huge number"
    return text or repr(value)[:50]
