"""Runs on a folder of pictures and on IDX files: trained, resumed, moved and evaluated."""

import shutil
from pathlib import Path

import pytest
import torch

import fashion_lit
from fashion_lit.commands.evaluate import main as evaluate
from fashion_lit.commands.leaderboard import main as leaderboard
from fashion_lit.commands.train import main as train
from fashion_lit.evaluation.curves import read_curves
from fashion_lit.models.cnn import CNNClassifier
from fashion_lit.runs.directory import RunDirectory

SETTINGS = [
    *("data.batch_size=16", "model.network.widths=[4,8,8]", "scheduler=constant", "precision=fp32"),
    *("trainer.accelerator=cpu", "trainer.enable_progress_bar=false", "augment=strong"),
]


def test_a_run_on_pictures_resumes_bit_identically_also_after_they_moved(
    picture_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures = shutil.copytree(picture_folder, tmp_path / "pictures")
    typed = ["data=folder", f"data.root={pictures.as_posix()}", "data.size=16", *SETTINGS]
    typed += ["data.class_sampling={blau: 2}", "augment.classes=[green]"]
    whole, parts = (RunDirectory(tmp_path / name) for name in ("whole", "parts"))
    assert train([*typed, f"run_dir={whole.path.as_posix()}", "trainer.max_epochs=2"]) == 0
    assert "pictures: 72 images to train on, 18 to validate, 15 to test" in capsys.readouterr().out
    assert train([*typed, f"run_dir={parts.path.as_posix()}", "trainer.max_epochs=1"]) == 0
    moved = pictures.rename(tmp_path / "moved")
    more = ["trainer.max_epochs=2", f"data.root={moved.as_posix()}"]
    assert train([f"run_dir={parts.path.as_posix()}", *more]) == 0
    assert evaluate([str(whole.path), "--split", "val"]) == 2
    assert evaluate([str(whole.path), "--split", "val", "--data-root", str(moved)]) == 0
    run = fashion_lit.load_run(whole.path)
    images = fashion_lit.load_run(parts.path).datamodule.images_of("val").images
    own = fashion_lit.predict(run, images)  # without its data
    again = fashion_lit.predict(fashion_lit.load_run(whole.path, data_root=moved), "val")
    assert torch.equal(own, again.probabilities)
    capsys.readouterr()
    states = [
        torch.load(run.last_checkpoint, weights_only=True)["state_dict"] for run in (whole, parts)
    ]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    first, second = (
        {key: value for key, value in run.metrics.items() if "second" not in key}
        for run in (whole, parts)
    )
    assert first == second
    assert parts.metrics["test/f1/Red_car"] >= 0
    loaded = CNNClassifier.load_from_checkpoint(parts.best_checkpoint)
    assert loaded.class_names == ("Red car", "blau", "green")
    assert evaluate([str(parts.path)]) == 0
    assert evaluate([str(whole.path)]) == 2  # its pictures are elsewhere now
    error = capsys.readouterr().err
    assert "--data-root FOLDER" in error
    assert len(error.splitlines()) == 1


def test_runs_on_idx_files_and_on_pictures_show_their_classes_and_are_not_compared(
    idx_folder: Path, picture_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, other = (RunDirectory(tmp_path / "runs" / name) for name in ("run", "other"))
    typed = ["data=idx", f"data.root={idx_folder.as_posix()}", *SETTINGS, "trainer.max_epochs=4"]
    assert train([*typed, f"run_dir={run.path.as_posix()}", "augment=shift"]) == 0
    assert run.metrics["test/accuracy"] > 0.5  # shades are easy
    assert run.metrics["test/recall/4"] >= 0
    typed = ["data=folder", f"data.root={picture_folder.as_posix()}", "data.size=16", *SETTINGS]
    assert train([*typed, f"run_dir={other.path.as_posix()}", "trainer.max_epochs=1"]) == 0
    for trained, tags in ((run, list("01234")), (other, ["Red_car", "blau", "green"])):
        assert evaluate([str(trained.path)]) == 0
        report = (trained.path / "report" / "classification_report.csv").read_text()
        names = [line.partition(",")[0] for line in report.splitlines()[1:]]
        assert names[: len(tags)] == [tag.replace("_", " ") for tag in tags]
        curves = read_curves(trained.path)
        assert [name for name in curves if name.startswith("val/f1/")] == [
            f"val/f1/{tag}" for tag in tags
        ]
    capsys.readouterr()
    assert leaderboard([str(tmp_path / "runs")]) == 2
    assert evaluate([str(run.path), str(other.path), "--compare"]) == 2
    assert capsys.readouterr().err.count("Expected runs on the same data to compare") == 2
