"""IDX files of any kind: what is read, and what is refused."""

import gzip
import shutil
import struct
from pathlib import Path

import pytest
import torch
from torchvision.datasets import mnist

from fashion_lit.data.sources.idx import IdxFiles, read_idx
from fashion_lit.errors import UserError

CONTENT = gzip.compress(b"four small files would do", mtime=0)


def idx_bytes(shape: tuple[int, ...], data: bytes, magic: int | None = None) -> bytes:
    """An IDX file as the format's page describes it, written independently of the reader."""
    magic = 0x0800 + len(shape) if magic is None else magic
    return struct.pack(f">{1 + len(shape)}I", magic, *shape) + data


LABELS = gzip.compress(idx_bytes((100,), bytes(range(100))), mtime=0)


def write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def write_set(folder: Path, labels: list[int], size: tuple[int, int] = (4, 4)) -> Path:
    """Write a data set of black images; the labels are those to train on and to test."""
    for split in ("train", "test"):
        count = len(labels)
        black = idx_bytes((count, *size), bytes(count * size[0] * size[1]))
        write(folder / f"my-{split}-images.idx3-ubyte", black)
        write(folder / f"my-{split}-labels.idx1-ubyte", idx_bytes((count,), bytes(labels)))
    return folder


@pytest.fixture
def copied(idx_folder: Path, tmp_path: Path) -> Path:
    """A copy of the IDX files that a test may change."""
    return Path(shutil.copytree(idx_folder, tmp_path / "copy"))


def test_files_are_read_as_torchvision_reads_them(idx_folder: Path) -> None:
    source = IdxFiles(root=str(idx_folder))
    assert (source.title, source.image_size, source.channels) == ("shades", 20, 1)
    assert (source.num_train, source.num_test) == (100, 25)
    assert source.class_names == ["0", "1", "2", "3", "4"]
    for part, split in zip(source.load(), ("train", "t10k"), strict=True):
        path = idx_folder / f"{split}-images-idx3-ubyte"
        assert torch.equal(part.images, mnist.read_sn3_pascalvincent_tensor(str(path)))
        assert torch.equal(part.labels, torch.arange(len(part.labels)) % 5)


def test_the_layout_of_torchvision_is_found_with_both_kinds_of_files(copied: Path) -> None:
    raw = copied.parent / "root" / "SHADES" / "raw"
    raw.parent.mkdir(parents=True)
    copied.rename(raw)
    for path in [p for p in raw.iterdir() if p.suffix != ".gz"]:  # it keeps what it downloads
        write(path.with_name(f"{path.name}.gz"), gzip.compress(path.read_bytes()))
    source = IdxFiles(root=str(copied.parent / "root"))
    assert (source.title, source.num_train) == ("SHADES", 100)
    shutil.copytree(raw, copied.parent / "root" / "OTHER" / "raw")
    with pytest.raises(UserError, match="there are OTHER/raw, SHADES/raw; name one of them"):
        IdxFiles(root=str(copied.parent / "root"))


def test_names_come_from_a_file(copied: Path) -> None:
    (copied / "classes.txt").write_text(
        "\ufeffno light\n\u3042\n2\nd/e\nwhite\n\n", encoding="utf-8"
    )
    assert IdxFiles(root=str(copied)).class_names == ["no light", "\u3042", "2", "d/e", "white"]
    (copied / "classes.txt").write_text("a\nb\nc", encoding="utf-8")
    with pytest.raises(UserError, match=r"labels of 0 to 2.*/train-labels.*the label 4\."):
        IdxFiles(root=str(copied))


def test_labels_may_count_from_1(tmp_path: Path) -> None:
    folder = write_set(tmp_path, [1, 2, 3, 1])
    source = IdxFiles(root=str(folder))
    assert source.class_names == ["1", "2", "3"]
    assert source.load()[0].labels.tolist() == [0, 1, 2, 0]
    (folder / "classes.txt").write_text("a\nb\nc")
    source = IdxFiles(root=str(folder))
    assert source.load()[1].labels.tolist() == [0, 1, 2, 0]
    (folder / "classes.txt").write_text("z\na\nb\nc")  # the first has no images
    source = IdxFiles(root=str(folder))
    assert source.load()[1].labels.tolist() == [1, 2, 3, 1]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("train-images-idx3-ubyte", None, r"found none for the training images; train-labels-idx1"),
        ("my-train-labels", idx_bytes((1,), b"a"), "my-train-labels, train-labels-idx1-ubyte.gz"),
        ("train-images-idx3-ubyte", b"P5 20 20", "train-images-idx3-ubyte starts with 50352032"),
        ("train-images-idx3-ubyte", b"", "train-images-idx3-ubyte starts with nothing"),
        ("train-images-idx3-ubyte", idx_bytes((9, 4, 5), bytes(180)), "5 pixels|4 x 5"),
        ("train-images-idx3-ubyte", idx_bytes((9, 4, 4), bytes(144)), "9 images and .* 100 labels"),
        ("train-images-idx3-ubyte", idx_bytes((100, 4, 4), bytes(1600)), "4 pixels and those in"),
        ("train-images-idx3-ubyte", idx_bytes((2**31, 9, 9), b"a"), "truncated: its header tells"),
        ("train-labels-idx1-ubyte.gz", LABELS[:-5], "gz is not a complete gzip file"),
        ("train-labels-idx1-ubyte.gz", CONTENT, "gz starts with 666f7572"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_file(
    name: str, content: bytes | None, message: str, copied: Path
) -> None:
    (copied / name).unlink(missing_ok=True)
    if content is not None:
        write(copied / name, content)
    with pytest.raises(UserError, match=message):
        IdxFiles(root=str(copied))


def test_a_truncated_compressed_file_of_images_is_refused(copied: Path) -> None:
    path = copied / "train-images-idx3-ubyte"
    packed = gzip.compress(path.read_bytes())
    path.unlink()
    write(path.with_name(f"{path.name}.gz"), packed[:-900])
    with pytest.raises(UserError, match=r"ubyte\.gz is not a complete gzip file"):
        IdxFiles(root=str(copied)).load()


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"for `data\.root`, but there is no "):
        IdxFiles(root=str(tmp_path / "nowhere"))


def test_read_idx_returns_the_files_values(tmp_path: Path) -> None:
    path = write(tmp_path / "a.gz", gzip.compress(idx_bytes((2, 1, 3), bytes(range(6)))))
    assert torch.equal(
        read_idx(path, shape=(2, 1, 3)), torch.arange(6, dtype=torch.uint8).view(2, 1, 3)
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (idx_bytes((4,), b"abcd", 0x0803), r"has the IDX magic 0x00000803, expected 0x00000801;"),
        (b"", r"has the IDX magic 0x, expected 0x00000801; get"),
        (idx_bytes((5,), b"abcde"), r"has the size \(5,\), expected \(4,\); get"),
        (idx_bytes((4,), b"abc"), r"holds 3 bytes of data, expected 4; get"),
        (idx_bytes((4,), b"abcde"), r"holds more than 4 bytes of data, expected 4; get"),
    ],
)
def test_read_idx_names_expected_and_found(tmp_path: Path, content: bytes, message: str) -> None:
    path = write(tmp_path / "labels.gz", gzip.compress(content, mtime=0))
    with pytest.raises(UserError, match=r"labels\.gz " + message):
        read_idx(path, shape=(4,))


@pytest.mark.parametrize("content", [b"no gzip at all", CONTENT[:-5], b""])
def test_read_idx_rejects_an_incomplete_gzip_file(tmp_path: Path, content: bytes) -> None:
    path = write(tmp_path / "labels.gz", content)
    with pytest.raises(UserError, match=r"labels\.gz (is not a complete gzip|has the IDX magic)"):
        read_idx(path, shape=(4,))
