"""Notice files of a run, and data, that were lost or changed, before the run goes on.

A run goes on if its result stays the same, and is refused otherwise.
"""

import hashlib
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from fashion_lit.errors import UserError
from fashion_lit.files import digest_of, digest_of_file
from fashion_lit.runs.data_records import DATA, check_same_data, is_known_by_settings
from fashion_lit.runs.directory import RunDirectory
from fashion_lit.runs.integrity import RECORD, read_checkpoint
from fashion_lit.text import quote_command, quote_if_needed

RESTORE = "restore them, or start another run with these"  # data that were changed


def restore_config(run: RunDirectory) -> None:
    """Rewrite config.yaml from the run's newest valid checkpoint.

    Raises UserError if the file is damaged and there is no such checkpoint.
    """
    for path in (run.last_checkpoint, run.previous_checkpoint, run.best_checkpoint):
        with suppress(UserError):
            run.write_config(read_checkpoint(path)[RECORD]["config"])
            print(f"{run.config_file} was missing or damaged; {path.name} has restored it.")
            return
    if run.config_file.exists() or run.status:
        raise UserError(
            f"Expected the settings of a run in {run.config_file}, but the file is missing or "
            "damaged, and no checkpoint has them; restore it, or use another directory."
        )


def restore_data(run: RunDirectory) -> Mapping[str, Any] | None:
    """Return what a run recorded of its data, None if nothing; the caller holds its lock.

    A missing or damaged data.json is rewritten from the newest checkpoint that has the record.
    """
    with suppress(UserError):
        if run.data is not None:
            return run.data
    for path in (run.last_checkpoint, run.previous_checkpoint, run.best_checkpoint):
        with suppress(UserError):
            if (recorded := read_checkpoint(path)[RECORD].get(DATA)) is not None:
                run.write_data(recorded)
                print(f"{run.data_file} was missing or damaged; {path.name} has restored it.")
                return recorded
    return None


def keep_data(run: RunDirectory, found: Mapping[str, Any], *, write: bool) -> None:
    """Record the data of a run that begins, or compare them with those recorded.

    Raises UserError if they differ. A damaged record is replaced.

    Args:
        run: the run.
        found: its data, as in `describe_data`.
        write: whether to write the record if there is none.
    """
    try:
        recorded = run.data
    except UserError as error:
        recorded = None
        if write:
            print(f"{error} It is written again.", file=sys.stderr)
    if recorded is not None and not is_known_by_settings(run.config):
        check_same_data(recorded, found, f"the run in {run.path}", RESTORE)
    elif recorded is None and write:
        run.write_data(found)


def check_recorded_files(run: RunDirectory, record: Mapping[str, Any]) -> None:
    """Raise UserError unless event files and best checkpoint match a checkpoint's record of them.

    Event files may have grown since, and the best checkpoint may be a later one.
    """
    for name, digest in record.get("event_digests", {}).items():
        path, size = run.path / name, record["event_files"][name]
        content = path.read_bytes()[:size] if path.is_file() else None
        if content is None or hashlib.sha256(content).hexdigest() != digest:
            state = "is missing" if content is None else "was changed"
            place = f"ckpt_path={quote_if_needed(run.last_checkpoint.as_posix())}"
            raise UserError(
                f"Expected the curves of this run in {path}, but it {state}; restore it, or start "
                f"a new run from here: {quote_command('fashion-lit', 'train', place)}."
            )
    if record.get("best_digest") is None:
        return
    best = run.best_checkpoint
    try:
        found = read_checkpoint(best)[RECORD]
        is_same = digest_of(best) == record["best_digest"]
        is_later = found["steps_done"] >= record["steps_done"]  # it will be written again
        if is_same or is_later:
            return
        state = "is an older one"
    except UserError as error:
        state = f"cannot be used ({error})"
    raise UserError(
        f"Expected the best checkpoint so far in {best}, but it {state}; restore it, or delete "
        f"{run.checkpoint_dir} to train from the beginning."
    )


def changed_files(run: RunDirectory) -> list[str]:
    """Describe the files of a finished run's result that are missing or were changed since."""
    found = []
    for name, digest in run.status.get("files", {}).items():
        path = run.path / name
        if not path.is_file():
            found.append(f"{name} is missing")
        elif digest_of_file(path) != digest:
            found.append(f"{name} was changed")
    return found


def check_result(run: RunDirectory) -> None:
    """Raise UserError unless a finished run's files are as they were written.

    Metrics can be written again, and the last checkpoint is only needed to train more epochs, so
    their loss is only announced.
    """
    last = run.last_checkpoint.relative_to(run.path).as_posix()
    changed = [text for text in changed_files(run) if not text.startswith(run.metrics_file.name)]
    if lost := [text for text in changed if text != f"{last} is missing"]:
        raise UserError(
            f"Expected the files of the finished run in {run.path} as it wrote them, but "
            f"{'; '.join(lost)}; restore them, or train again in another directory."
        )
    if changed:
        print(f"{last} is missing, so this run cannot be trained for more epochs.")
    if not run.is_complete:
        print(f"{run.metrics_file} is missing or damaged; it will be written again.")


def check_source(run: RunDirectory, source: Path) -> None:
    """Raise UserError unless the checkpoint that a run started from is still the same."""
    expected = run.status.get("source_digest")
    if expected is None:
        print(f"Starting again from {source}, whose digest was not recorded.", file=sys.stderr)
    elif digest_of_file(source) != expected:
        raise UserError(
            f"Expected the checkpoint that this run started from in {source}, but the file was "
            f"changed since, and the run has no checkpoint of its own; restore it, or start "
            "another run."
        )
