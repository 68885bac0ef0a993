"""Files that are whole or absent, whenever the process or the machine stops."""

import os
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

PART_PATTERN = "*.part"  # what a kill in the middle of a write leaves behind; safe to delete
WINDOWS = os.name == "nt"
NUM_TRIES, TRY_SECONDS = 50, 0.02
T = TypeVar("T")


def write_atomically(
    path: Path, data: bytes | str, *, keep_previous_as: Path | None = None
) -> None:
    """Replace the file at `path`; whoever reads finds the old data or the new, on disk.

    The data goes to a temporary name in the same directory, is flushed to disk, and renamed.

    Args:
        path: the file.
        data: text is written as UTF-8.
        keep_previous_as: the old file gets this name, in the same directory.

    Raises OSError with the old file intact.
    """
    part = path.with_name(f"{path.name}.{uuid.uuid4().hex}.part")
    try:
        with part.open("wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        if keep_previous_as is not None and path.exists():
            _retried(lambda: path.replace(keep_previous_as))
        _retried(lambda: part.replace(path))
        _flush_directory(path.parent)
    finally:
        part.unlink(missing_ok=True)


def read_text(path: Path) -> str:
    """Return the text of a file that another process may be replacing."""
    return _retried(lambda: path.read_text(encoding="utf-8"))


def _retried(action: Callable[[], T]) -> T:
    """Do it, on Windows for up to a second: there nobody can open a file while it is replaced.

    Nor replace it while somebody reads it; both then end with PermissionError.
    """
    for _ in range(NUM_TRIES if WINDOWS else 0):
        try:
            return action()
        except PermissionError:
            time.sleep(TRY_SECONDS)
    return action()


def _flush_directory(directory: Path) -> None:
    """Make a rename survive a power cut; Windows offers no way, and needs none."""
    if WINDOWS:
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
