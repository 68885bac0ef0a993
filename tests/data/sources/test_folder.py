"""Folders of pictures: what is read, and what is refused."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import ImageFolder as TorchvisionFolder
from torchvision.transforms.v2.functional import pil_to_tensor

from fashion_lit.data.sources.folder import ImageFolder, read_picture
from fashion_lit.errors import UserError


@pytest.fixture
def copied(picture_folder: Path, tmp_path: Path) -> Path:
    """A copy of the pictures that a test may change."""
    return Path(shutil.copytree(picture_folder, tmp_path / "copy"))


def test_pictures_classes_and_labels_are_those_of_torchvision(copied: Path) -> None:
    for path in copied.glob("*/*/*.png"):  # to square, so that they stay as they are
        Image.open(path).crop((0, 0, 24, 24)).save(path)
    (copied / "train" / ".hidden").mkdir()
    (copied / "train" / "green" / "raw").mkdir()
    (copied / "train" / "green" / "notes.txt").write_text("no picture")
    shutil.copy(copied / "train/green/3.png", copied / "train/green/UPPER.PNG")
    source = ImageFolder(root=str(copied), size=24)
    assert (source.title, source.num_train, source.num_test) == ("copy", 91, 15)
    (copied / "train" / ".hidden").rmdir()
    (copied / "train" / "green" / "raw").rmdir()
    for part, split in zip(source.load(), ("train", "test"), strict=True):
        theirs = TorchvisionFolder(str(copied / split))
        assert list(source.class_names) == theirs.classes == ["Red car", "blau", "green"]
        assert part.labels.tolist() == theirs.targets
        for place, image in enumerate(part.images):
            assert torch.equal(image, pil_to_tensor(theirs[place][0]))
    greys = ImageFolder(root=str(copied), size=24, channels=1).load()[1].images
    assert greys.shape == (15, 24, 24)


def test_the_middle_of_a_picture_is_scaled(tmp_path: Path) -> None:
    pixels = np.random.RandomState(0).randint(0, 256, (60, 100, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    for width, size in ((25, 15), (100, 60), (150, 90)):
        scaled = Image.fromarray(pixels).resize((width, size), Image.Resampling.BILINEAR)
        left = (width - size) // 2
        expected = scaled.crop((left, 0, left + size, size))
        assert (read_picture(tmp_path / "wide.png", size, 3) == np.asarray(expected)).all()
    Image.fromarray(pixels.swapaxes(0, 1)).save(tmp_path / "high.png")
    high, wide = (read_picture(tmp_path / f"{name}.png", 60, 3) for name in ("high", "wide"))
    assert (high == wide.swapaxes(0, 1)).all()


RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16)


def turned(path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: the camera was turned
    Image.fromarray(RAMP).save(path, exif=exif)


def with_palette(path: Path) -> None:
    picture = Image.fromarray(255 - RAMP)
    picture.putpalette([255 - i // 3 for i in range(768)])
    picture.save(path)


def transparent(path: Path) -> None:
    alpha = np.where(RAMP < 128, 0, 255).astype(np.uint8)
    Image.fromarray(np.stack([RAMP, RAMP, RAMP, alpha], 2)).save(path)


@pytest.mark.parametrize(
    ("write", "expected"),
    [
        (lambda path: Image.fromarray(RAMP).save(path), RAMP),
        (lambda path: Image.fromarray(RAMP.astype(np.uint16) * 257).save(path), RAMP),
        (lambda path: Image.fromarray(RAMP > 99).save(path), np.where(RAMP > 99, 255, 0)),
        (lambda path: Image.fromarray(RAMP).convert("LA").save(path), RAMP),
        (with_palette, RAMP),
        (turned, np.rot90(RAMP, -1)),
        (transparent, np.where(RAMP < 128, 255, RAMP)),
    ],
    ids=["grey", "16 bits", "1 bit", "grey with alpha", "palette", "turned", "transparent"],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_of_other_kinds_are_converted(
    write: Callable[[Path], Any], expected: np.ndarray, channels: int, tmp_path: Path
) -> None:
    write(tmp_path / "a.png")
    found = read_picture(tmp_path / "a.png", 16, channels)
    assert found.shape == ((16, 16) if channels == 1 else (16, 16, 3))
    assert (found.reshape(16, 16, -1) == expected[:, :, None]).all()


def test_without_a_folder_test_there_are_no_test_images(copied: Path) -> None:
    shutil.rmtree(copied / "test")
    source = ImageFolder(root=str(copied), size=8)
    assert source.num_test == 0
    images, labels = source.load()[1]
    assert images.shape == (0, 3, 8, 8)
    assert labels.shape == (0,)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda root: shutil.rmtree(root / "train"), r"for each class in .*train, .* holds test\."),
        (lambda root: (root / "test" / "bird").mkdir(), r"bird, but it holds nothing; add some"),
        (lambda root: shutil.copytree(root / "test/green", root / "test/bird"), "no folder bird"),
        (lambda root: (root / "train/a").symlink_to(root / "b"), "a, but it is a link to nothing"),
        (lambda root: (root / "train/green/3.png").rename(root / "train/3.png"), "3.png is beside"),
        (lambda root: shutil.copytree(root / "test/green", root / "test/blau/more"), "two folders"),
        (lambda root: shutil.rmtree(root), r"for `data\.root`, but there is no "),
    ],
)
def test_folders_that_do_not_fit_are_refused(
    change: Callable[[Path], Any], message: str, copied: Path
) -> None:
    change(copied)
    with pytest.raises(UserError, match=message):
        ImageFolder(root=str(copied))


def no_picture(path: Path) -> None:
    path.write_text("text")


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-300])


def too_large(path: Path) -> None:
    Image.new("1", (30_000, 10_000)).save(path, compress_level=1)


def of_floats(path: Path) -> None:
    Image.fromarray(RAMP.astype(np.float32)).save(path, format="TIFF")


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (no_picture, "cannot identify image file"),
        (truncated, "truncated"),
        (too_large, "exceeds limit of"),
        (of_floats, "more than 16 bits for each pixel"),
    ],
)
def test_a_picture_that_cannot_be_read_is_named(
    write: Callable[[Path], None], reason: str, copied: Path
) -> None:
    write(copied / "train" / "green" / "7.png")
    source = ImageFolder(root=str(copied), size=8)
    with pytest.raises(UserError, match=rf"picture in .*7\.png, .*{reason}.*; replace or remove"):
        source.load()
