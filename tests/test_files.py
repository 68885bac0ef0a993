import os
from pathlib import Path

import pytest

from fashion_lit.files import write_atomically


def test_data_replaces_data_and_leaves_no_temporary_file(tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    write_atomically(path, "Ä")
    assert path.read_bytes() == "Ä".encode()
    write_atomically(path, b"two")
    assert path.read_bytes() == b"two"
    assert list(tmp_path.iterdir()) == [path]


def test_predecessor_is_kept_if_asked_for(tmp_path: Path) -> None:
    path, previous = tmp_path / "last", tmp_path / "previous"
    for data in ("one", "two", "three"):
        write_atomically(path, data, keep_previous_as=previous)
    assert (previous.read_text(), path.read_text()) == ("two", "three")


def test_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "last"
    write_atomically(path, "one")

    def no_space(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, "two", keep_previous_as=tmp_path / "previous")
    assert path.read_text() == "one"
    assert list(tmp_path.iterdir()) == [path]
