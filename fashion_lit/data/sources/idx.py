"""Any data set in four IDX files, such as MNIST, KMNIST or EMNIST.

    train, test = IdxFiles(root="kmnist").load()

Format: http://yann.lecun.com/exdb/mnist/. A file starts with two zero bytes, 8 for unsigned bytes,
and the number of dimensions; then follow the dimensions and the bytes.
"""

import gzip
import math
import re
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fashion_lit.data.sources.source import MAX_IMAGE_SIZE, ImageSource, LabelledImages, Root
from fashion_lit.errors import UserError

KINDS = {3: "images", 1: "labels"}  # by the number of dimensions
SPLITS = re.compile(r"(?<![a-z])(train|t10k|test)")  # in a file's name, in lower case
REMEDY = "get a good copy of it."
NAMES_FILE = "classes.txt"
MAX_RATIO = 1040  # of the bytes before and after gzip's compression


class IdxFiles(ImageSource):
    """Images and labels in four IDX files, plain or compressed by gzip.

    Which is which is read from their headers (images or labels) and their names, which contain
    "train", or "t10k" or "test". Images are grey and square. Labels count from 0 or from 1. Pixels
    stay as they are in the files; EMNIST's are transposed.

    Args:
        root: folder of the four files, directly or in its only `NAME/raw`, as torchvision makes it.
            Names of the classes come from `classes.txt` beside them, one in a line in the order of
            the labels; without this file, they are the labels.
    """

    def __init__(self, *, root: Root) -> None:
        self.folder = find_folder(Path(root).expanduser().absolute())
        self.files = find_files(self.folder)
        is_raw = self.folder.name == "raw" and self.folder.parent.name
        self.title = self.folder.parent.name if is_raw else self.folder.name
        shapes = {key: read_shape(path) for key, path in self.files.items()}
        for split in ("train", "test"):
            check_shapes(self.files, shapes, split)
        self.num_train, self.image_size = shapes["train", "images"][:2]
        self.num_test, size = shapes["test", "images"][:2]
        if size != self.image_size:
            raise UserError(
                f"Expected images of one size, but those in {self.files['train', 'images']} have "
                f"{self.image_size} pixels and those in {self.files['test', 'images']} {size}."
            )
        self.labels = {
            split: read_idx(self.files[split, "labels"], shape=shapes[split, "labels"])
            for split in ("train", "test")
        }
        self.class_names, self.first_label = self._name_classes()

    def load(self) -> tuple[LabelledImages, LabelledImages]:
        """Return the training and the test images; raise UserError if a file is damaged."""
        return self._read("train", self.num_train), self._read("test", self.num_test)

    def _read(self, split: str, number: int) -> LabelledImages:
        shape = (number, self.image_size, self.image_size)
        labels = self.labels[split].long() - self.first_label
        return LabelledImages(read_idx(self.files[split, "images"], shape=shape), labels)

    def _name_classes(self) -> tuple[list[str], int]:
        """Return the names in NAMES_FILE, or else the labels as text; and the first label, 0 or 1.

        Raises UserError for a label without a name.
        """
        path = self.folder / NAMES_FILE
        largest = {split: int(labels.max()) for split, labels in self.labels.items()}
        first = min(1, *(int(labels.min()) for labels in self.labels.values()))
        if not path.is_file():
            return [str(label) for label in range(first, max(largest.values()) + 1)], first
        try:
            names = path.read_text(encoding="utf-8-sig").rstrip().split("\n")
        except (OSError, UnicodeError) as error:
            raise UserError(f"Expected names in UTF-8 in {path}, but: {error}") from None
        if max(largest.values()) != len(names):
            first = 0
        last = first + len(names) - 1
        for split, label in largest.items():
            if label > last:
                raise UserError(
                    f"Expected labels of {first} to {last}, because {path} names {len(names)} "
                    f"classes, but {self.files[split, 'labels']} holds the label {label}."
                )
        return [name.strip() for name in names], first


def find_folder(root: Path) -> Path:
    """Return the folder of the files: `root`, or its only `NAME/raw` if `root` has no files."""
    if not root.is_dir():
        raise UserError(f"Expected a folder of IDX files for `data.root`, but there is no {root}.")
    below = sorted(path for path in root.glob("*/raw") if path.is_dir())
    if any(map(is_candidate, root.iterdir())) or not below:
        return root
    if len(below) > 1:
        raise UserError(
            f"Expected the IDX files of one data set for `data.root`, but in {root} there are "
            f"{', '.join(path.relative_to(root).as_posix() for path in below)}; name one of them."
        )
    return below[0]


def is_candidate(path: Path) -> bool:
    """Return whether a file may be one of the four, by its name."""
    name = path.name.lower().removesuffix(".gz")
    is_idx = re.search(r"idx|ubyte", name) or "." not in name
    return bool(SPLITS.search(name) and is_idx and path.is_file())


def find_files(folder: Path) -> dict[tuple[str, str], Path]:
    """Return {("train" or "test", "images" or "labels"): its file}.

    A compressed file beside the same one without compression is left out. Raises UserError unless
    there is one of each.
    """
    found: dict[tuple[str, str], list[Path]] = {}
    paths = sorted(filter(is_candidate, folder.iterdir()))
    for path in paths:
        if path.suffix == ".gz" and path.with_suffix("") in paths:
            continue
        splits = {"train" if m == "train" else "test" for m in SPLITS.findall(path.name.lower())}
        for split in splits:
            found.setdefault((split, KINDS[len(read_shape(path))]), []).append(path)
    wanted = [(split, kind) for split in ("train", "test") for kind in KINDS.values()]
    if any(len(found.get(key, ())) != 1 for key in wanted):
        listed = [
            f"{', '.join(path.name for path in found[key]) if key in found else 'none'} for the "
            f"{'training' if key[0] == 'train' else key[0]} {key[1]}"
            for key in wanted
        ]
        raise UserError(
            f"Expected four IDX files in {folder}, such as train-images-idx3-ubyte.gz, one each, "
            f"but found {'; '.join(listed)}; put the four files of one data set into a folder."
        )
    return {key: found[key][0] for key in wanted}


def check_shapes(
    files: dict[tuple[str, str], Path], shapes: dict[tuple[str, str], tuple[int, ...]], split: str
) -> None:
    """Raise UserError unless the sizes of a split's images and labels fit each other."""
    images, labels = files[split, "images"], files[split, "labels"]
    number, height, width = shapes[split, "images"]
    if height != width or not 0 < height <= MAX_IMAGE_SIZE:
        raise UserError(
            f"Expected square images of 1 to {MAX_IMAGE_SIZE:,} pixels, but those in {images} have "
            f"{height:,} x {width:,}."
        )
    if number != shapes[split, "labels"][0]:
        raise UserError(
            f"Expected a label for each image, but {images} holds {number:,} images and {labels} "
            f"{shapes[split, 'labels'][0]:,} labels."
        )
    if not number:
        raise UserError(f"Expected images, but {images} holds none.")


def read_shape(path: Path) -> tuple[int, ...]:
    """Return the dimensions in the header of an IDX file of images or labels.

    Raises UserError if it is neither.
    """
    header = read_bytes(path, 16)
    if header[:3] != bytes((0, 0, 8)) or header[3:4] not in (bytes((n,)) for n in KINDS):
        raise UserError(
            f"Expected an IDX file of images or labels, whose first bytes are 00000803 or "
            f"00000801, but {path} starts with {header[:4].hex() or 'nothing'}."
        )
    shape = dimensions(header, header[3])
    size, num_bytes = math.prod(shape), path.stat().st_size
    if size > num_bytes * (MAX_RATIO if path.suffix == ".gz" else 1):
        raise UserError(
            f"{path} is truncated: its header tells of {size:,} bytes of data, but the file has "
            f"{num_bytes:,}; {REMEDY}"
        )
    return shape


def dimensions(content: bytes, number: int) -> tuple[int, ...]:
    """Return the dimensions in the first bytes of an IDX file, as far as there are any."""
    size = (len(content[4 : 4 + 4 * number]) // 4) * 4
    found = tuple(np.frombuffer(content[4 : 4 + size], dtype=">u4").tolist())
    return found + (0,) * (number - len(found))


def read_bytes(path: Path, most: int, remedy: str = REMEDY) -> bytes:
    """Return the first bytes of a file, at most `most`, after decompression if it ends in .gz.

    Raises UserError if it cannot be read.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            return file.read(most)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{path} is not a complete gzip file ({error}); {remedy}") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error}).") from None


def read_idx(path: Path, *, shape: tuple[int, ...], remedy: str = REMEDY) -> Tensor:
    """Read an IDX file of unsigned bytes, compressed if it ends in .gz, as a uint8 tensor.

    Raises UserError, with the file, the expected and the found value, if its compression, magic
    number, dimensions or length are wrong.

    Args:
        path: the file.
        shape: its dimensions.
        remedy: what the user may do about a damaged file.
    """
    size, header_size = math.prod(shape), 4 + 4 * len(shape)
    content = read_bytes(path, header_size + size + 1, remedy)
    magic = bytes((0, 0, 8, len(shape)))
    if content[:4] != magic:
        raise UserError(
            f"{path} has the IDX magic 0x{content[:4].hex()}, expected 0x{magic.hex()}; {remedy}"
        )
    found_shape = dimensions(content, len(shape))
    if found_shape != shape:
        raise UserError(f"{path} has the size {found_shape}, expected {shape}; {remedy}")
    found = len(content) - header_size
    if found != size:
        count = f"more than {size:,}" if found > size else f"{found:,}"
        raise UserError(f"{path} holds {count} bytes of data, expected {size:,}; {remedy}")
    return torch.frombuffer(bytearray(content[header_size:]), dtype=torch.uint8).view(shape)
