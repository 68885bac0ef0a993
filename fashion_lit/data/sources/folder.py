"""Pictures in a folder for each class: train/CLASS/*.png and test/CLASS/*.png.

    train, test = ImageFolder(root="pets", size=64).load()

All pictures are scaled to one size and read once, into memory.
"""

import os
import unicodedata
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from PIL import Image, ImageOps
from pydantic import Field
from torch import Tensor
from tqdm import tqdm

from fashion_lit.data.sources.source import MAX_IMAGE_SIZE, ImageSource, LabelledImages, Root
from fashion_lit.errors import UserError
from fashion_lit.text import shorten

# Formats of pictures and the ends of their names. Pillow reads more: some run other programs.
FORMATS = {
    "PNG": (".png",),
    "JPEG": (".jpg", ".jpeg", ".jfif"),
    "BMP": (".bmp",),
    "WEBP": (".webp",),
    "GIF": (".gif",),
    "TIFF": (".tif", ".tiff"),
    "PPM": (".ppm", ".pgm", ".pbm"),
}
ENDS = tuple(end for ends in FORMATS.values() for end in ends)
TRANSPARENT = ("RGBA", "RGBa", "LA", "La", "PA")  # modes of Pillow
MAX_16_BITS = 2**16 - 1


class ImageFolder(ImageSource):
    """Pictures of any size in `root`/train/CLASS and `root`/test/CLASS.

    The names of the folders in train are those of the classes, in alphabetical order. Files whose
    names do not end as those of pictures are left out, and so are names that start with a dot.

    Args:
        root: the folder of train and test. Without test, there are no test images.
        size: height and width in pixels of the images in memory. A picture is scaled until its
            shorter side fits, with antialiasing, and its middle is taken.
        channels: 3, colour, or 1, grey. Transparent pixels become white. Orientation follows the
            picture's EXIF data, and 16 bits become 8.
    """

    def __init__(
        self,
        *,
        root: Root,
        size: Annotated[int, Field(gt=0, le=MAX_IMAGE_SIZE)] = 64,
        channels: Literal[1, 3] = 3,
    ) -> None:
        self.root = Path(root).expanduser().absolute()
        if not self.root.is_dir():
            raise UserError(f"Expected a folder for `data.root`, but there is no {self.root}.")
        self.title = self.root.name
        train = find_pictures(self.root, "train")
        self.class_names = tuple(train)
        has_test = (self.root / "test").is_dir()
        test = find_pictures(self.root, "test") if has_test else {}
        if unknown := [name for name in test if name not in train]:
            raise UserError(
                f"Expected the classes of {self.root / 'test'} to be among those of train, but "
                f"train has no folder {shorten(', '.join(unknown))}."
            )
        self.pictures = (train, test)
        self.num_train, self.num_test = (sum(map(len, part.values())) for part in self.pictures)
        self.image_size = size
        self.channels = channels

    def load(self) -> tuple[LabelledImages, LabelledImages]:
        """Read all pictures; raise UserError if one of them cannot be read."""
        train, test = self.pictures
        return self._read(train), self._read(test)

    def _read(self, pictures: dict[str, list[Path]]) -> LabelledImages:
        places = {name: place for place, name in enumerate(self.class_names)}
        paths = [path for name in pictures for path in pictures[name]]
        labels = [places[name] for name in pictures for _ in pictures[name]]
        images = read_pictures(paths, self.image_size, self.channels)
        return LabelledImages(images, torch.tensor(labels, dtype=torch.int64))


def find_pictures(root: Path, split: str) -> dict[str, list[Path]]:
    """Return {class: its pictures} in `root`/`split`, sorted by names alone.

    Raises UserError if there are no classes, or no pictures of one.
    """
    folder = root / split
    entries = _visible(folder) if folder.is_dir() else []
    for path in entries:
        check_place(path, "beside the folders of the classes")
    folders = {_name(p): p for p in entries if p.is_dir()}
    if not folders:
        found = ", ".join(sorted(map(_name, _visible(root)))) or "nothing"
        raise UserError(
            f"Expected a folder for each class in {folder}, with its pictures, but there is none; "
            f"{root} holds {shorten(found)}."
        )
    pictures = {}
    for name in sorted(folders):
        entries = _visible(folders[name])
        files = [p for p in entries if is_picture(p)]
        for path in (below for p in entries if p.is_dir() for below in _visible(p)):
            check_place(path, f"two folders below {folder}")
        if not files:
            found = ", ".join(sorted(map(_name, _visible(folders[name])))) or "nothing"
            raise UserError(
                f"Expected pictures ({', '.join(end[1:] for end in ENDS)}) in {folders[name]}, but "
                f"it holds {shorten(found)}; add some, or remove the folder."
            )
        pictures[name] = sorted(files, key=_name)
    return pictures


def check_place(path: Path, place: str) -> None:
    """Raise UserError for a picture outside of the folders of the classes, or a link to nothing."""
    if not path.exists():
        raise UserError(f"Expected pictures in {path}, but it is a link to nothing; remove it.")
    if is_picture(path):
        raise UserError(
            f"Expected every picture in the folder of its class, as in train/CLASS/*.png, but "
            f"{path.name} is {place}, in {path.parent}; move or remove it."
        )


def is_picture(path: Path) -> bool:
    """Return whether a file is a picture by its name."""
    return path.suffix.lower() in ENDS and not path.is_dir()


def _visible(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if not path.name.startswith(".")]


def _name(path: Path) -> str:
    """Return a file's name in one form: some systems store accents as characters of their own."""
    return unicodedata.normalize("NFC", path.name)


def read_pictures(paths: Sequence[Path], size: int, channels: int) -> Tensor:
    """Return pictures as images (N, size, size) or (N, 3, size, size) uint8, in order.

    Raises UserError for the first that cannot be read.
    """
    shape = (size, size, 3) if channels == 3 else (size, size)
    images = np.empty((len(paths), *shape), np.uint8)
    with (
        warnings.catch_warnings(),
        ThreadPoolExecutor(os.cpu_count()) as pool,
        tqdm(total=len(paths), desc="pictures", disable=None, leave=False) as bar,  # on a terminal
    ):
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        for place, image in enumerate(pool.map(lambda p: read_picture(p, size, channels), paths)):
            images[place] = image
            bar.update()
    tensor = torch.from_numpy(images)
    return tensor.permute(0, 3, 1, 2).contiguous() if channels == 3 else tensor


def read_picture(path: Path, size: int, channels: int) -> np.ndarray:
    """Return a picture as an array (size, size) or (size, size, 3) uint8.

    Raises UserError if it cannot be read, as one that is truncated or has too many pixels.
    """
    try:
        with Image.open(path, formats=tuple(FORMATS)) as picture:
            plain = to_plain(ImageOps.exif_transpose(picture), "RGB" if channels == 3 else "L")
        return np.asarray(ImageOps.fit(plain, (size, size), Image.Resampling.BILINEAR))
    except Exception as error:  # Pillow raises a dozen kinds for damaged files
        reason = str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__
        raise UserError(
            f"Expected a picture in {path}, but it cannot be read: {shorten(reason, 200)}; replace "
            "or remove it."
        ) from None


def to_plain(picture: Image.Image, mode: str) -> Image.Image:
    """Return a picture in the mode "L" or "RGB"; raise ValueError for one of 32 bits a channel."""
    if picture.mode.startswith(("I", "F")):
        values = np.asarray(picture)
        if picture.mode == "F" or values.min() < 0 or values.max() > MAX_16_BITS:
            raise ValueError("it has more than 16 bits for each pixel")
        picture = Image.fromarray((values * (255 / MAX_16_BITS)).round().astype(np.uint8))
    if picture.mode in TRANSPARENT or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, (255, 255, 255, 255))
        picture = Image.alpha_composite(white, picture)
    return picture.convert(mode)
