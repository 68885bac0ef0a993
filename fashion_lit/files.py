"""Atomic file writes, and digests by which a damaged file is noticed.

A file is complete or absent, even after a crash or power loss. An archive ends with the SHA-256 of
its other bytes: `with_digest` puts it into the comment, which is the end of a zip archive.
"""

import hashlib
import io
import os
import re
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TypeVar

from fashion_lit.errors import UserError

PART_NAME = re.compile(r".+\.[0-9a-f]{32}\.part")  # of `write_atomically`'s temporary files
WINDOWS = os.name == "nt"
NUM_TRIES, TRY_SECONDS = 50, 0.02
MARK = b"sha256:"  # the comment: this, and 64 hexadecimal digits
END_OF_ARCHIVE = b"PK\5\6"  # of a zip archive, 22 bytes before its comment
COMMENT_SIZE = len(MARK) + 64
T = TypeVar("T")


class Figure(Protocol):
    """A figure of matplotlib."""

    def savefig(self, fname: Any, *, format: str) -> None:
        """Write it to a file."""


def write_atomically(
    path: Path, data: bytes | str, *, keep_previous_as: Path | None = None
) -> None:
    """Replace the file at `path` atomically: readers see the old data or the new data.

    The data is written to a temporary file in the same directory, flushed to disk, and renamed.

    Args:
        path: the file.
        data: the content; text is written as UTF-8.
        keep_previous_as: the new name of the old file, in the same directory; None: replace it.

    Raises OSError and leaves the old file intact if the data cannot be written.
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


def with_digest(archive: bytes | memoryview) -> bytes:
    """Return a zip archive that has no comment, with the digest of its other bytes as one."""
    body = memoryview(archive)[:-2]
    comment_size = COMMENT_SIZE.to_bytes(2, "little")  # the archive's last field
    digest = hashlib.sha256(body)
    digest.update(comment_size)
    return b"".join((body, comment_size, MARK, digest.hexdigest().encode()))


def has_right_digest(data: bytes) -> bool | None:
    """Return whether the digest at the end of a file is that of its other bytes; None without."""
    body, comment = memoryview(data)[:-COMMENT_SIZE], data[-COMMENT_SIZE:]
    if not comment.startswith(MARK):
        has_comment = body[-2:] == COMMENT_SIZE.to_bytes(2, "little")  # the mark is damaged
        return False if has_comment and body[-22:-18] == END_OF_ARCHIVE else None
    return comment[len(MARK) :] == hashlib.sha256(body).hexdigest().encode()


def digest_of(path: Path) -> str | None:
    """Return the digest at the end of a file, in hexadecimal digits; None without one."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - COMMENT_SIZE))
        comment = file.read()
    return comment[len(MARK) :].decode("ascii", "replace") if comment.startswith(MARK) else None


def digest_of_file(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def event_files(directory: Path) -> list[Path]:
    """Return TensorBoard's files in a directory, in the order in which they were begun."""
    return sorted(p for p in directory.glob("events.out.tfevents.*") if p.is_file())


def png(figure: Figure) -> bytes:
    """Return a figure as a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def is_part(path: Path) -> bool:
    """Whether a file is what an interrupted `write_atomically` left; it is safe to delete."""
    return PART_NAME.fullmatch(path.name) is not None


def check_writable(path: Path) -> None:
    """Raise UserError unless a file can be written at `path`, whose folder may be made for it."""
    try:
        if path.is_dir():
            raise IsADirectoryError(0, "it is a directory")
        made = [folder for folder in path.absolute().parents if not folder.exists()]
        path.parent.mkdir(parents=True, exist_ok=True)
        probe = path.with_name(f"{path.name}.{uuid.uuid4().hex}.part")
        probe.touch()
        probe.unlink()
        for folder in made:  # the deepest first
            folder.rmdir()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise UserError(
            f"Expected a place for the output, but {path} cannot be written ({reason}); choose "
            "another by --output."
        ) from None


def read_text(path: Path) -> str:
    """Return the text of a file that another process may be replacing."""
    return _retried(lambda: path.read_text(encoding="utf-8"))


def _retried(action: Callable[[], T]) -> T:
    """Run the action; on Windows, retry after PermissionError for up to a second.

    Windows raises it on opening a file that is being replaced, and on replacing an open file.
    """
    for _ in range(NUM_TRIES if WINDOWS else 0):
        try:
            return action()
        except PermissionError:
            time.sleep(TRY_SECONDS)
    return action()


def _flush_directory(directory: Path) -> None:
    """Flush a rename to disk, to survive a power cut; Windows has no such call and needs none."""
    if WINDOWS:
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
