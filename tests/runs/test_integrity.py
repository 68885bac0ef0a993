"""A checkpoint is loaded only if it is what was written, and possible for its run."""

import random
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fashion_lit.commands.evaluate import main as evaluate
from fashion_lit.errors import UserError
from fashion_lit.files import with_digest
from fashion_lit.models.build import build_classifier
from fashion_lit.models.cnn import CNNClassifier
from fashion_lit.runs.directory import RunDirectory
from fashion_lit.runs.integrity import (
    RECORD,
    check_fits,
    find_problem,
    read_checkpoint,
)


@pytest.fixture
def checkpoint(finished_run: RunDirectory, tmp_path: Path) -> Path:
    return Path(shutil.copy(finished_run.best_checkpoint, tmp_path))


def flip(path: Path, index: int, mask: int) -> None:
    content = bytearray(path.read_bytes())
    content[index] ^= mask
    path.write_bytes(content)


def test_every_flipped_bit_is_found(checkpoint: Path) -> None:
    intact = checkpoint.read_bytes()
    assert read_checkpoint(checkpoint)[RECORD]["steps_done"] > 0
    draw = random.Random(0)
    places = [draw.randrange(len(intact)) for _ in range(40)]
    places += range(len(intact) - 120, len(intact), 3)  # the end of the archive, and its digest
    for place in places:
        checkpoint.write_bytes(intact)
        flip(checkpoint, place, 1 << draw.randrange(8))
        for load in (read_checkpoint, CNNClassifier.load_from_checkpoint):
            with pytest.raises(UserError, match=r"best\.ckpt"):
                load(checkpoint)


@pytest.mark.parametrize("size", [0, 1, 71, 100, -1])
def test_a_truncated_file_is_found(checkpoint: Path, size: int) -> None:
    checkpoint.write_bytes(checkpoint.read_bytes()[:size])
    with pytest.raises(UserError, match="damaged"):
        read_checkpoint(checkpoint)


def save_without_digest(checkpoint: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = torch.load(checkpoint, weights_only=True)
    content[RECORD].pop("has_digest", None)
    change(content)
    torch.save(content, checkpoint)


def test_a_directory_flag_in_an_earlier_versions_archive_is_found(
    checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_without_digest(checkpoint, lambda content: None)
    read_checkpoint(checkpoint)
    assert f"{checkpoint} has no digest" in capsys.readouterr().err
    with zipfile.ZipFile(checkpoint) as archive:
        start = archive.start_dir
    flip(checkpoint, start + 38, 0x10)  # the external attributes of the first entry
    with pytest.raises(UserError, match="is damaged or not one"):
        read_checkpoint(checkpoint)


@pytest.mark.parametrize("has_digest", [True, False])
def test_a_compressed_archive_is_refused(has_digest: bool, checkpoint: Path) -> None:
    save_without_digest(checkpoint, lambda content: None)
    with zipfile.ZipFile(checkpoint) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(checkpoint, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    if has_digest:
        checkpoint.write_bytes(with_digest(checkpoint.read_bytes()))
    with pytest.raises(UserError, match="is damaged or not one"):
        read_checkpoint(checkpoint)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda c: c["optimizer_states"].clear(), "has 0 optimizer_states instead of 1"),
        (lambda c: c["lr_schedulers"].append({}), "has 2 lr_schedulers instead of 1"),
        (lambda c: c[RECORD].update(epochs_done=99), "was saved after 99 of 2 epochs"),
        (lambda c: c["FashionMNISTDataModule"].update(position=[1, 500]), "at batch 500 of"),
        (lambda c: c["hyper_parameters"].update(class_weights=[1.0] * 9), "class_weights="),
        (lambda c: c[RECORD].pop("config"), "has no complete record of its run"),
        (lambda c: c.pop("loops"), "was not written by it"),
    ],
)
def test_impossible_contents_are_named(
    checkpoint: Path, change: Callable[[dict[str, Any]], object], problem: str
) -> None:
    content = torch.load(checkpoint, weights_only=True)
    change(content)
    assert problem in str(find_problem(content))


def test_weights_and_optimizer_states_fit_the_network(checkpoint: Path) -> None:
    content = torch.load(checkpoint, weights_only=True)
    classifier = build_classifier(content[RECORD]["config"])
    check_fits(content, classifier, checkpoint)
    states = content["optimizer_states"][0]["state"]
    removed = states.popitem()
    with pytest.raises(UserError, match="optimizer states for"):
        check_fits(content, classifier, checkpoint)
    states[removed[0]] = removed[1]
    name = next(iter(content["state_dict"]))
    content["state_dict"][name] = torch.zeros(3)
    with pytest.raises(UserError, match=r"1 of .* tensors are missing, unknown or"):
        check_fits(content, classifier, checkpoint)


def test_evaluate_refuses_a_damaged_checkpoint(
    finished_run: RunDirectory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished_run.path, run)
    best = run / "checkpoints" / "best.ckpt"
    flip(best, best.stat().st_size // 2, 0x10)
    assert evaluate([str(run), "--output", str(tmp_path / "out")]) == 2
    assert "best.ckpt" in capsys.readouterr().err
