import os
from collections.abc import Callable
from pathlib import Path

import pytest

from fashion_lit import files
from fashion_lit.files import check_writable, read_text, write_atomically


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


@pytest.mark.parametrize("windows", [True, False])
def test_windows_waits_until_nobody_else_has_the_file(
    windows: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, refusals = tmp_path / "status.json", [PermissionError(), PermissionError()]
    path.write_text("old")

    def refuse_twice(action: Callable[..., object]) -> Callable[..., object]:
        def refuse(*arguments: object, **keywords: object) -> object:
            if refusals:
                raise refusals.pop()
            return action(*arguments, **keywords)

        return refuse

    monkeypatch.setattr(files, "WINDOWS", windows)
    monkeypatch.setattr(files, "_flush_directory", lambda directory: None)
    monkeypatch.setattr(files, "TRY_SECONDS", 0.0)
    monkeypatch.setattr(Path, "replace", refuse_twice(Path.replace))
    monkeypatch.setattr(Path, "read_text", refuse_twice(Path.read_text))
    if windows:
        write_atomically(path, "new")
        assert path.read_bytes() == b"new"
        refusals += [PermissionError(), PermissionError()]
        assert read_text(path) == "new"
    else:  # elsewhere it means a missing permission
        with pytest.raises(PermissionError):
            write_atomically(path, "new")
        with pytest.raises(PermissionError):
            read_text(path)


def test_windows_does_not_wait_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise PermissionError

    monkeypatch.setattr(files, "WINDOWS", True)
    monkeypatch.setattr(files, "TRY_SECONDS", 0.0)
    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(PermissionError):
        write_atomically(tmp_path / "status.json", "new")


def test_a_checked_place_is_left_as_it_was(tmp_path: Path) -> None:
    check_writable(tmp_path / "new" / "folder" / "metrics.json")
    assert not list(tmp_path.iterdir())
