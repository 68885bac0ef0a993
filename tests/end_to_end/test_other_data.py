"""Runs on three classes in colour: what they record, and that changed data are refused."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fashion_lit.commands.evaluate import main as evaluate
from fashion_lit.commands.leaderboard import main as leaderboard
from fashion_lit.commands.train import main as train
from fashion_lit.config import schema
from fashion_lit.data.randomness import generator
from fashion_lit.data.sources.source import ImageSource, LabelledImages
from fashion_lit.runs.directory import RunDirectory

NAMES = ("r/ed", "<green>", "青")
SETTINGS = [
    *("data=synthetic", "data.name=drawn", "data.num_train=90", "data.num_test=30"),
    *("data.val_size=30", "data.batch_size=30", "data.image_size=12", "precision=fp32"),
    *("model=fast_cnn", "model.network.widths=[4,4,4]", "scheduler=constant"),
    *("trainer.max_epochs=1", "trainer.accelerator=cpu", "trainer.enable_progress_bar=false"),
]


class Drawn(ImageSource):
    """Noise in three colours; what is in `changed` is not in the settings, as files are not."""

    title = "colours"
    class_names = NAMES
    image_size = 12
    channels = 3
    changed = 0

    def __init__(self, *, num_train: int, num_test: int, drawing_seed: int = 0) -> None:
        self.num_train = num_train
        self.num_test = num_test
        self.seeds = (drawing_seed, type(self).changed)

    def load(self) -> tuple[LabelledImages, LabelledImages]:
        """Draw the images."""
        return self.draw(self.num_train, 0), self.draw(self.num_test, 1)

    def draw(self, count: int, stream: int) -> LabelledImages:
        """Draw images whose label is their brightest channel."""
        random = generator(*self.seeds, stream)
        images = torch.randint(0, 100, (count, 3, 12, 12), generator=random, dtype=torch.uint8)
        labels = torch.arange(count) % 3
        images[torch.arange(count), labels] += 100
        return LabelledImages(images, labels)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., RunDirectory]:
    """Train on `Drawn`; returns the finished run."""
    monkeypatch.setitem(schema.SOURCES, "drawn", Drawn)
    monkeypatch.setattr(Drawn, "changed", 0)

    def run(name: str, *overrides: str) -> RunDirectory:
        place = tmp_path / "runs" / name
        assert train([*SETTINGS, f"run_dir={place.as_posix()}", *overrides]) == 0
        return RunDirectory(place)

    return run


def contents(folder: Path) -> dict[str, str]:
    """Return the digests of all files in a folder."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def test_three_classes_in_colour(
    drawn: Callable[..., RunDirectory], capsys: pytest.CaptureFixture[str]
) -> None:
    run = drawn("a", "tensorboard.pictures=true")
    assert "<green>" in capsys.readouterr().out
    assert run.data is not None
    assert run.data["class_names"] == list(NAMES)
    assert (run.data["channels"], len(run.data["mean"])) == (3, 3)
    assert {name for name in run.metrics if name.startswith("test/f1")} == {
        "test/f1/r_ed",
        "test/f1/<green>",
        "test/f1/青",
    }
    assert evaluate([str(run.path), "--tta"]) == 0
    html = (run.path / "report" / "report.html").read_text(encoding="utf-8")
    assert "&lt;green&gt;" in html
    assert "<td><green>" not in html
    assert "青 (#2 in figures)" in html
    assert "report A" not in html
    metrics = json.loads((run.path / "report" / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["test/accuracy"] == pytest.approx(run.metrics["test/accuracy"])


def test_changed_data_are_refused_and_nothing_is_lost(
    drawn: Callable[..., RunDirectory],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = drawn("a", "test=false")
    first: Any = run.data
    before = contents(run.path)
    place, new = f"run_dir={run.path.as_posix()}", run.path.with_name("new")
    monkeypatch.setattr(Drawn, "changed", 1)
    start = f"run_dir={new.as_posix()}"
    commands = [
        [place, "test=true"],
        [place, "trainer.max_epochs=2"],
        [f"ckpt_path={run.last_checkpoint.as_posix()}", "trainer.max_epochs=2", start],
        [*SETTINGS, f"teacher={run.path.as_posix()}", start],
    ]
    codes = [train(command) for command in commands]
    errors = capsys.readouterr().err.splitlines()
    codes.append(evaluate([str(run.path)]))
    errors += capsys.readouterr().err.splitlines()
    assert codes == [2] * len(codes)
    assert len(errors) == len(codes)  # one sentence each
    for error in errors:
        assert f"colours (90 images to train, 30 to test, {first['fingerprint'][:12]})" in error
        assert error.count("colours") == 2
    assert not new.exists()
    assert contents(run.path) == before
    second = drawn("b", "test=false", f"init_from={run.path.as_posix()}")
    assert second.data != first
    folder = str(run.path.parent)
    assert leaderboard([folder]) == 2
    assert evaluate([folder, "--select", "2"]) == 2
    for more in ([], ["--compare"], ["--weights", "fit"]):
        assert evaluate([str(run.path), str(second.path), *more]) == 2
    monkeypatch.setattr(Drawn, "changed", 0)
    assert train([place, "test=true"]) == 0  # restored
    assert run.data == first
