"""What a stopped run needs to go on: its settings, and the newest checkpoint that is sound.

To read: `resolve_run_config`, before anything is built, then `open_run`, under the run's lock.
"""

import os
import re
import sys
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from fashion_lit.config.compose import amend, parse_override
from fashion_lit.config.schema import check
from fashion_lit.config.settings import (
    LOCATION_KEYS,
    Config,
    _may_change,
    check_resumable,
    differences,
    is_result_neutral,
    network_name,
)
from fashion_lit.errors import UserError
from fashion_lit.runs.checkpoints import RECORD
from fashion_lit.runs.directory import RunDirectory

# How the first process of a DDP run tells the others, which Lightning starts, where the run is and
# where to begin.
RUN_DIR_VARIABLE, CHECKPOINT_VARIABLE = "FASHION_LIT_RUN_DIR", "FASHION_LIT_CHECKPOINT"


@dataclass(frozen=True)
class Restart:
    """Where a run begins.

    Args:
        checkpoint: its file, or None for the very beginning.
        record: what `ResumeCheckpoints` kept in it.
        same_run: the checkpoint is the run's own, rather than where a new run departs from.
    """

    checkpoint: Path | None = None
    record: Mapping[str, Any] = field(default_factory=dict)
    same_run: bool = False


def resolve_run_config(composed: Config, overrides: Sequence[str]) -> tuple[Config, Path]:
    """Return a single run's settings, checked, and its directory.

    A run that exists resumes with its own settings, a run from a checkpoint takes that one's; what
    is typed beside them may not change the result. Raises UserError.
    """
    run_dir = Path(str(composed["run_dir"]))
    run = RunDirectory(run_dir)
    locations = {key: composed[key] for key in LOCATION_KEYS}
    settings = {key: value for key, value in composed.items() if key not in LOCATION_KEYS}
    checkpoint = None if composed.get("ckpt_path") is None else Path(str(composed["ckpt_path"]))
    if run.exists:
        # A record may be older than a setting that cannot change the result.
        newer = {key: value for key, value in composed.items() if is_result_neutral(key)}
        recorded = newer | run.config
        settings = check_resumable(
            recorded, amend(recorded, overrides, composed), f"the run in {run.path}"
        )
    elif checkpoint is not None:
        record = read_record(checkpoint)
        recorded = record["config"]
        wanted = amend(recorded, overrides, composed) | {"ckpt_path": recorded["ckpt_path"]}
        settings = check_resumable(recorded, wanted, f"the checkpoint {checkpoint}")
        settings |= {"ckpt_path": str(checkpoint.absolute())}
        check_epochs_left(record["epochs_done"], settings["trainer"]["max_epochs"], checkpoint)
        if "run_dir" not in {parse_override(text).key_or_group for text in overrides}:
            name = run_dir.name.removesuffix(network_name(composed)) + network_name(settings)
            run_dir = run_dir.with_name(name)
    check(settings | locations)
    return settings, run_dir


def check_epochs_left(epochs_done: int, max_epochs: int, checkpoint: Path) -> None:
    """Raise UserError if there is nothing left to train."""
    if epochs_done >= max_epochs:
        raise UserError(
            f"Expected `trainer.max_epochs` to be more than the {epochs_done} epochs that "
            f"{checkpoint} has behind it, but got {max_epochs}."
        )


def read_record(path: Path) -> dict[str, Any]:
    """Return what `ResumeCheckpoints` kept in a checkpoint; raises UserError if it cannot be used.

    Only tensors and plain values are ever loaded, so no checkpoint can execute code.
    """
    if not path.is_file():
        raise UserError(f"Expected a checkpoint, but there is no file {path}.")
    if not _is_sound_archive(path):
        size = path.stat().st_size
        raise UserError(f"Expected a checkpoint, but {path} ({size:,} bytes) is damaged, or none.")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        raise UserError(
            f"Expected tensors and plain values only, but {path} holds {_foreign_object(error)}; "
            "it was not loaded, since that could run any code."
        ) from None
    except Exception as error:
        raise UserError(
            f"Expected a checkpoint, but {path} is damaged ({_first_line(error)})."
        ) from None
    needed = (RECORD, "state_dict", "loops", "optimizer_states")
    if not isinstance(checkpoint, dict) or any(key not in checkpoint for key in needed):
        raise UserError(f"Expected a checkpoint of fashion-lit, but {path} was not written by it.")
    return checkpoint[RECORD]


def _is_sound_archive(path: Path) -> bool:
    """Whether a file is a zip archive, as checkpoints are, whose checksums are right.

    torch.load does not look at them: a flipped byte would end in wrong weights.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (zipfile.BadZipFile, EOFError, OSError, ValueError):
        return False


def _foreign_object(error: UnpicklingError) -> str:
    found = re.search(r"GLOBAL (\S+)", str(error))
    return found[1] if found else "something else"


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:150] or type(error).__name__


def find_restart(run: RunDirectory, config: Config, *, set_aside: bool = True) -> Restart:
    """Return the run's newest sound checkpoint, or the beginning if there is none.

    With `set_aside`, which needs the run's lock, files that are not sound are renamed, and named.
    """
    restart = Restart()
    for path in (run.best_checkpoint, run.previous_checkpoint, run.last_checkpoint):  # newest last
        if not path.exists():
            continue
        try:
            record = read_record(path)
            _check_config(path, record["config"], config)
        except UserError as error:
            if not set_aside:
                continue
            aside = path.with_name(f"{path.name}.unusable")
            path.replace(aside)
            print(f"{error} It was renamed to {aside.name}, and is not used.", file=sys.stderr)
            continue
        restart = Restart(path, record, same_run=True)
    return restart


def sound_best(run: RunDirectory) -> tuple[str, int]:
    """Return the run's best checkpoint and its epoch, from 1; raises UserError if it is lost."""
    if not run.best_checkpoint.exists():
        raise UserError(
            f"Expected the best epoch in {run.best_checkpoint}, but it is gone, and training is "
            f"over. Delete {run.checkpoint_dir} and continue the run: it then begins anew."
        )
    record = read_record(run.best_checkpoint)
    return str(run.best_checkpoint), record["epochs_done"] + 1


def _check_config(path: Path, found: Config, expected: Config) -> None:
    changed = [k for k in differences(found, expected) if not _may_change(k, found, expected)]
    if changed:
        raise UserError(
            f"Expected a checkpoint of this run, but {path} belongs to another configuration "
            f"({', '.join(changed[:5])})."
        )


def open_run(run: RunDirectory, config: Config) -> Restart | None:
    """Record a new run, or find where a stopped one goes on; None: it is finished."""
    before = run.status
    if not run.exists:
        run.create(config)
        run.write_status("running")
        path = config["ckpt_path"]
        return Restart(Path(path), departure(read_record(Path(path)))) if path else Restart()
    recorded = run.config
    check_resumable(recorded, config, f"the run in {run.path}")
    if is_trained(run, config) and (not config["test"] or "test/accuracy" in run.metrics):
        return None
    if before.get("state") == "running":
        print(f"Process {before['process']} on {before['host']} left this run without a word.")
    restart = find_restart(run, config)
    path = config["ckpt_path"]
    if restart.checkpoint is None and path:
        restart = Restart(Path(path), departure(read_record(Path(path))))
    run.rewind(restart.record["event_files"] if restart.same_run else {})
    if config != recorded:
        run.write_config(config)
    run.write_status("running")
    return restart


def is_trained(run: RunDirectory, config: Config) -> bool:
    """Whether a run is finished, and not asked for more epochs."""
    more_epochs = config["trainer"]["max_epochs"] > run.config["trainer"]["max_epochs"]
    return run.status.get("state") == "finished" and not more_epochs


def departure(record: dict[str, Any]) -> dict[str, Any]:
    """Return what a new run takes from another run's checkpoint: not its clock, nor its end."""
    kept = ("metrics", "environment", "epochs_done", "steps_done")
    return {key: record[key] for key in kept}


def restart_from_environment(run: RunDirectory, config: Config) -> Restart:
    """Return where the first process of this run begins, for the others."""
    checkpoint = os.environ.get(CHECKPOINT_VARIABLE)
    if checkpoint is None:  # torchrun or SLURM started all of them at once
        return find_restart(run, config, set_aside=False)
    if not checkpoint:
        return Restart()
    return Restart(Path(checkpoint), read_record(Path(checkpoint)), same_run=True)
