"""Find, download, verify and read the four Fashion-MNIST files.

    train, test = FashionMNIST(root="data").load()
    train.images.shape  # (60000, 28, 28), uint8

The official gzip files are read directly and their MD5 is checked. A missing file is copied from
the first mirror (a local folder or a URL) that has an intact copy.

Source: Xiao, Rasul, Vollgraf, "Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine
Learning Algorithms", https://arxiv.org/abs/1708.07747
"""

import hashlib
import time
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

from tqdm import tqdm

from fashion_lit.data.sources.idx import read_idx
from fashion_lit.data.sources.source import ImageSource, LabelledImages
from fashion_lit.errors import UserError
from fashion_lit.files import write_atomically

CLASS_NAMES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
# TensorBoard splits tags at every slash, but "T-shirt/top" is one class.
CLASS_TAGS = tuple(name.replace("/", "_").replace(" ", "_") for name in CLASS_NAMES)
NUM_CLASSES = len(CLASS_NAMES)
IMAGE_SIZE = 28  # pixels, height and width
PIXEL_MEAN = 0.2860  # of the 60,000 training images, on a scale of [0, 1]
PIXEL_STD = 0.3530

_REPOSITORY = Path(__file__).resolve().parents[3]
IS_CHECKOUT = (_REPOSITORY / "pyproject.toml").is_file()
BASE_DIR = _REPOSITORY if IS_CHECKOUT else Path.cwd()  # relative paths are resolved from here
TORCHVISION_FOLDER = Path("FashionMNIST", "raw")  # torchvision's layout under the same root
DOWNLOAD_SECONDS = 900  # at most, for one file
REMEDY = "delete it and run again to fetch a good copy."  # for a damaged file
MIRRORS = (
    "../shared/data/FashionMNIST/raw",
    "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
)


@dataclass(frozen=True)
class GzipFile:
    """An official gzip file: its name, size in bytes, MD5 and number of items."""

    name: str
    num_bytes: int
    md5: str
    num_items: int


TRAIN_FILES = (
    GzipFile("train-images-idx3-ubyte.gz", 26421880, "8d4fb7e6c68d591d4c3dfef9ec88bf0d", 60000),
    GzipFile("train-labels-idx1-ubyte.gz", 29515, "25c81989df183df01b3e8a0aad5dffbe", 60000),
)
TEST_FILES = (
    GzipFile("t10k-images-idx3-ubyte.gz", 4422102, "bef4ecab320f06d8554ea6380940ec79", 10000),
    GzipFile("t10k-labels-idx1-ubyte.gz", 5148, "bb300cfdad3c16e7a12a480ee83cd310", 10000),
)


class FashionMNIST(ImageSource):
    """Load Fashion-MNIST from its official files.

    Args:
        root: folder of the four files, directly or in `FashionMNIST/raw`, where missing files are
            stored; None: `data/` in the checkout, or in the current directory if not in a checkout.
        mirrors: local folders and URLs, tried in order for every file that `root` lacks; relative
            folders are resolved from the checkout, or else from the current directory.
    """

    title = "Fashion-MNIST"
    class_names = CLASS_NAMES
    num_train = TRAIN_FILES[0].num_items
    num_test = TEST_FILES[0].num_items
    image_size = IMAGE_SIZE
    mean = (PIXEL_MEAN,)
    std = (PIXEL_STD,)

    def __init__(self, *, root: str | None = None, mirrors: Sequence[str] = MIRRORS) -> None:
        self.root = Path(root).expanduser().absolute() if root else BASE_DIR / "data"
        self.mirrors = tuple(mirrors)

    def prepare(self) -> None:
        """Fetch the missing files; raise UserError if no mirror has an intact copy of one."""
        for file in (*TRAIN_FILES, *TEST_FILES):
            fetch(file, self.root, self.mirrors)

    def load(self) -> tuple[LabelledImages, LabelledImages]:
        """Return the 60,000 training and 10,000 test images, fetching missing files.

        Raises UserError if a file is damaged, or if no mirror has an intact copy.
        """
        return self._read(TRAIN_FILES), self._read(TEST_FILES)

    def _read(self, files: tuple[GzipFile, GzipFile]) -> LabelledImages:
        images, labels = (fetch(file, self.root, self.mirrors) for file in files)
        for path, file in zip((images, labels), files, strict=True):
            check_file(path, file)
        return read_labelled_images(images, labels, num_items=files[0].num_items)


def fetch(file: GzipFile, root: Path, mirrors: Sequence[str]) -> Path:
    """Return the path of `file` under `root`, after copying it from a mirror if it is missing.

    An existing file is not verified here. Raises UserError if no mirror has an intact copy.
    """
    target = root / TORCHVISION_FOLDER / file.name
    for path in (target, root / file.name):
        if path.is_file():
            return path
    failures = []
    for mirror in mirrors:
        try:
            content = _read_mirror(mirror, file)
            if problem := find_problem(content, file):
                raise UserError(f"its copy {problem}")
            target.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(target, content)
            return target
        except (OSError, UserError, HTTPException, ValueError) as error:
            failures.append(f"  {mirror}: {error}")
    raise UserError(
        f"{file.name} is not under {root}, and no mirror provides it:\n"
        + "\n".join(failures or ["  (data.mirrors is empty)"])
        + f"\nPut the four official .gz files into {target.parent}, set data.root=FOLDER to their "
        "folder, or use drawn images instead (data=synthetic)."
    )


def check_file(path: Path, file: GzipFile) -> None:
    """Raise UserError if the file at `path` is damaged; the file itself stays untouched."""
    if problem := find_problem(path.read_bytes(), file):
        raise UserError(f"{path} {problem}; {REMEDY}")


def find_problem(content: bytes, file: GzipFile) -> str | None:
    """Describe how a file's size or MD5 differs from the expected one; return None if intact."""
    num_bytes = len(content)
    if num_bytes != file.num_bytes:
        word = "truncated" if num_bytes < file.num_bytes else "too long"
        return f"is {word}: expected {file.num_bytes:,} bytes, found {num_bytes:,}"
    md5 = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if md5 != file.md5:
        return f"is damaged: expected MD5 {file.md5}, found {md5}"
    return None


def _read_mirror(mirror: str, file: GzipFile) -> bytes:
    """Return the content of `file` in a folder or at a URL; raise OSError or UserError."""
    if "://" in mirror:
        return _download(f"{mirror.rstrip('/')}/{file.name}", file.num_bytes)
    source = BASE_DIR / Path(mirror).expanduser() / file.name
    if not source.is_file():
        raise UserError("no such file")
    return source.read_bytes()


def _download(url: str, num_bytes: int) -> bytes:
    """Return what is at a URL, or one byte more than the `num_bytes` that are expected."""
    content = bytearray()
    ends = time.monotonic() + DOWNLOAD_SECONDS
    with (
        urllib.request.urlopen(url, timeout=30) as response,
        tqdm(total=num_bytes, unit="B", unit_scale=True, desc=url.rsplit("/", 1)[-1]) as bar,
    ):
        # read1 returns what has arrived: a server that sends a byte now and then cannot block it
        while len(content) <= num_bytes and (chunk := response.read1(1 << 16)):
            if time.monotonic() > ends:
                raise UserError(f"only {len(content):,} bytes came in {DOWNLOAD_SECONDS} s")
            content += chunk
            bar.update(len(chunk))
    return bytes(content[: num_bytes + 1])


def read_labelled_images(images: Path, labels: Path, *, num_items: int) -> LabelledImages:
    """Read an images file and its labels file, each with `num_items` items.

    Raises UserError if a file is malformed or a label is not in 0..9.
    """
    pixels = read_idx(images, shape=(num_items, IMAGE_SIZE, IMAGE_SIZE), remedy=REMEDY)
    classes = read_idx(labels, shape=(num_items,), remedy=REMEDY)
    if int(classes.max()) >= NUM_CLASSES:
        raise UserError(
            f"{labels} holds the label {int(classes.max())}, expected 0 to {NUM_CLASSES - 1}; "
            f"{REMEDY}"
        )
    return LabelledImages(pixels, classes.long())
