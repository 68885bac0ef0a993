"""Modules that a test writes beside its working directory, and that leave a trace when imported."""

import itertools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

NUMBERS = itertools.count()
TRACE = "from pathlib import Path\nPath(__file__).with_name('imported').touch()\n"


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], str]]:
    """Write a module with this text into the working directory; return its name.

    It writes a file "imported" beside itself when it is imported.
    """
    monkeypatch.chdir(tmp_path)
    names, before = [], list(sys.path)

    def write(text: str) -> str:
        name = f"own_package_{next(NUMBERS)}"  # a new one, because Python keeps what it imported
        (tmp_path / f"{name}.py").write_text(TRACE + text, encoding="utf-8")
        names.append(name)
        return name

    yield write
    sys.path[:] = before
    for name in names:
        sys.modules.pop(name, None)


@pytest.fixture
def imported(tmp_path: Path) -> Callable[[], bool]:
    """Return whether one of the modules that `package` wrote was imported."""
    return (tmp_path / "imported").exists
