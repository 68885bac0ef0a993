"""data.json of runs: what it holds, what is made of a damaged one, and which data are the same."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from fashion_lit.commands.evaluate import main as evaluate
from fashion_lit.commands.leaderboard import main as leaderboard
from fashion_lit.commands.train import main as train
from fashion_lit.errors import UserError
from fashion_lit.runs.data_records import (
    DATA,
    check_one_data_set,
    check_same_data,
    describe_data,
    find_problem_of_data,
    identity_of,
    read_data,
    text_of_data,
)
from fashion_lit.runs.directory import RunDirectory
from fashion_lit.runs.integrity import RECORD, read_checkpoint
from fashion_lit.runs.lost_files import keep_data
from fashion_lit.sweeps.ranking import read_run
from fashion_lit.training.build import build_datamodule

CATS: dict[str, Any] = {
    "title": "cats",
    "class_names": ["Maine Coon", "Sphynx", "お"],
    "num_train": 1200,
    "num_test": 0,
    "image_size": 64,
    "channels": 3,
    "mean": [0.5, 0.4, 0.3],
    "std": [0.2, 0.2, 0.2],
    "fingerprint": "0123456789abcdef" * 4,
}
DOGS = CATS | {"title": "dogs", "num_test": 30, "fingerprint": "fedcba9876543210" * 4}
SYNTHETIC = {"data": {"name": "synthetic", "num_train": 300, "num_test": 101, "drawing_seed": 0}}
FOLDER = {"data": {"name": "folder", "root": "x"}}


def test_a_run_and_its_checkpoints_record_the_data(finished_run: RunDirectory) -> None:
    datamodule = build_datamodule(finished_run.config)
    datamodule.setup()
    expected = describe_data(datamodule)
    assert finished_run.data == expected
    assert (expected["num_train"], expected["num_test"]) == (300, 101)
    assert expected["class_names"][0] == "T-shirt/top"
    for path in (finished_run.best_checkpoint, finished_run.last_checkpoint):
        assert read_checkpoint(path)[RECORD][DATA] == expected


def test_nonsense_is_named(tmp_path: Path) -> None:
    path = tmp_path / "data.json"
    path.write_text(text_of_data(CATS), encoding="utf-8")
    assert read_data(path) == CATS
    changed = [
        {"title": 7},
        {"class_names": []},
        {"class_names": ["a", 7]},
        {"num_train": -1},
        {"num_test": True},
        {"image_size": 1.5},
        {"channels": 2},
        {"mean": [0.5]},
        {"std": "x"},
        {"std": [0.1, 0.2, float("nan")]},
        {"fingerprint": None},
        {"more": 1},
    ]
    for change in changed:
        path.write_text(text_of_data(CATS | change))
        with pytest.raises(UserError, match=r"Expected .*data\.json") as raised:
            read_data(path)
        assert "\n" not in str(raised.value)
    texts = [
        "",
        "[]",
        "{}",
        json.dumps(CATS),
        text_of_data(CATS).replace("1200", "1201"),
        "[" * 9999,
    ]
    for text in texts:
        path.write_text(text)
        with pytest.raises(UserError, match=r"Expected .*data\.json"):
            read_data(path)
    assert find_problem_of_data([]) is not None


def test_data_are_told_apart() -> None:
    def key(config: dict[str, Any], data: dict[str, Any] | None = None) -> str | None:
        identity = identity_of(config, data)
        return None if identity is None else identity.key

    real = {"data": {"name": "fashion_mnist"}}
    assert key(real) == key(real, CATS)  # the files are verified
    assert key(SYNTHETIC) == key({"data": SYNTHETIC["data"] | {"val_size": 7}}, CATS)
    assert key(FOLDER) is None
    assert key(FOLDER, CATS) == key({"data": {"name": "idx"}}, CATS)
    keys = [
        key(real),
        key(SYNTHETIC),
        *(key({"data": SYNTHETIC["data"] | {k: 7}}) for k in ("num_train", "drawing_seed")),
        key(FOLDER, CATS),
        key(FOLDER, DOGS),
    ]
    assert len(set(keys)) == len(keys)
    message = (
        "Expected the data that a was trained on, cats (1,200 images to train, 0 to test, "
        "0123456789ab), but the data now are dogs (1,200 images to train, 30 to test, "
        "fedcba987654); do b."
    )
    with pytest.raises(UserError) as raised:
        check_same_data(CATS, DOGS, "a", "do b")
    assert str(raised.value) == message
    check_same_data(CATS, CATS | {"title": "other"}, "a", "do b")


def test_runs_on_different_data_are_not_compared() -> None:
    cats, dogs = identity_of(FOLDER, CATS), identity_of(FOLDER, DOGS)
    check_one_data_set([("a", cats), ("b", None), ("c", cats)])
    with pytest.raises(UserError) as raised:
        check_one_data_set([("a", cats), ("b", dogs), ("c", cats), ("d", identity_of(SYNTHETIC))])
    assert str(raised.value).startswith(
        "Expected runs on the same data to compare, but a and 1 more are on cats (1,200 images to "
        "train, 0 to test, 0123456789ab), b is on dogs (1,200 images to train, 30 to test, "
        "fedcba987654), d is on synthetic garments (num_train=300, num_test=101, drawing_seed=0); "
    )


def rewrite_as_folder(run: RunDirectory, data: dict[str, Any]) -> None:
    """Let a finished run seem to be one on images of a folder."""
    run.write_config(run.config | FOLDER)
    run.write_data(data)


def test_a_lost_record_is_restored_or_named(
    run_copy: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [f"run_dir={run_copy.path.as_posix()}"]
    written = run_copy.data_file.read_bytes()
    for damaged in (written.replace(b"300", b"301"), None):
        run_copy.data_file.unlink() if damaged is None else run_copy.data_file.write_bytes(damaged)
        assert read_run(run_copy.path).state == "finished"  # the settings tell
        assert train(command) == 0
        assert "last.ckpt has restored it" in capsys.readouterr().out
        assert run_copy.data_file.read_bytes() == written


def test_a_record_of_other_data_is_refused_and_stays(
    run_copy: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    rewrite_as_folder(run_copy, CATS)
    keep_data(run_copy, CATS, write=True)
    with pytest.raises(
        UserError, match=r"Expected the data that the run in .* was trained on, cats"
    ):
        keep_data(run_copy, DOGS, write=True)
    assert run_copy.data == CATS
    run_copy.data_file.write_text("{}")
    found = read_run(run_copy.path)
    assert (found.state, found.data) == ("damaged", None)
    assert "data.json" in found.note
    run_copy.data_file.unlink()
    assert "data.json" in read_run(run_copy.path).note
    keep_data(run_copy, DOGS, write=False)
    assert not run_copy.data_file.exists()
    keep_data(run_copy, DOGS, write=True)
    assert run_copy.data == DOGS
    assert capsys.readouterr().err == ""


def test_a_leaderboard_of_runs_on_different_data_is_refused(
    run_copy: RunDirectory, finished_run: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    other = RunDirectory(run_copy.path.with_name("other"))
    other.path.mkdir()
    for name in ("config.yaml", "status.json", "metrics.json", "data.json"):
        (other.path / name).write_bytes((finished_run.path / name).read_bytes())
    assert leaderboard([str(run_copy.path.parent)]) == 0
    other.data_file.unlink()  # as in runs of earlier versions
    assert leaderboard([str(run_copy.path.parent)]) == 0
    rewrite_as_folder(other, CATS)
    capsys.readouterr()
    assert leaderboard([str(run_copy.path.parent)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    for text in (str(other.path), str(run_copy.path), "cats (1,200", "synthetic garments"):
        assert text in error
    select = [str(run_copy.path.parent), "--select", "2"]
    (other.checkpoint_dir).mkdir()
    torch.save({}, other.best_checkpoint)
    assert evaluate(select) == 2
    assert "Expected runs on the same data" in capsys.readouterr().err
