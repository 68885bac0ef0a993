import gzip
import hashlib
import struct
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from fashion_lit.data.sources import fashion_mnist
from fashion_lit.data.sources.fashion_mnist import (
    CLASS_NAMES,
    PIXEL_MEAN,
    PIXEL_STD,
    TORCHVISION_FOLDER,
    FashionMNIST,
    GzipFile,
    check_file,
    fetch,
    read_labelled_images,
)
from fashion_lit.errors import UserError

CONTENT = gzip.compress(b"four small files would do", mtime=0)
GOOD = GzipFile("small.gz", len(CONTENT), hashlib.md5(CONTENT).hexdigest(), 1)


def idx_bytes(shape: tuple[int, ...], data: bytes, magic: int | None = None) -> bytes:
    """An IDX file as the format's page describes it, written independently of the reader."""
    magic = 0x0800 + len(shape) if magic is None else magic
    return struct.pack(f">{1 + len(shape)}I", magic, *shape) + data


def write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def test_file_is_found_directly_and_in_torchvisions_folder(tmp_path: Path) -> None:
    flat = write(tmp_path / "flat" / GOOD.name, CONTENT)
    nested = write(tmp_path / "nested" / TORCHVISION_FOLDER / GOOD.name, CONTENT)
    assert fetch(GOOD, tmp_path / "flat", []) == flat
    assert fetch(GOOD, tmp_path / "nested", []) == nested


def test_missing_file_is_copied_from_the_first_mirror_with_a_good_copy(tmp_path: Path) -> None:
    write(tmp_path / "damaged" / GOOD.name, CONTENT[:-1] + b"x")
    write(tmp_path / "good" / GOOD.name, CONTENT)
    mirrors = [str(tmp_path / name) for name in ("absent", "damaged", "good")]
    path = fetch(GOOD, tmp_path / "root", mirrors)
    assert path.read_bytes() == CONTENT
    assert [p.name for p in path.parent.iterdir()] == [GOOD.name]  # no temporary file is left


def test_download_from_a_url(tmp_path: Path) -> None:
    write(tmp_path / "served" / GOOD.name, CONTENT)
    path = fetch(GOOD, tmp_path / "root", [(tmp_path / "served").as_uri()])
    assert path.read_bytes() == CONTENT


class BadServer(BaseHTTPRequestHandler):
    """Answers each path in a way of its own."""

    def do_GET(self) -> None:
        fault = self.path.split("/")[1]
        if fault == "status":
            self.wfile.write(b"no HTTP at all\r\n\r\n")
        elif fault == "headers":
            self.wfile.write(b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 200 + b"\r\n")
        elif fault == "length":
            self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n" + CONTENT[:5])
        elif fault == "chunk":
            head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
            self.wfile.write(head + b"ffff\r\nabc")
        else:
            self.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n")
            with suppress(OSError):
                while True:
                    self.wfile.write(bytes(1 << 16))

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.mark.parametrize(
    "fault", ["status", "headers", "length", "chunk", "endless", "http://[malformed", "http://"]
)
def test_a_bad_mirror_is_followed_by_the_next(fault: str, tmp_path: Path) -> None:
    write(tmp_path / "good" / GOOD.name, CONTENT)
    server = ThreadingHTTPServer(("127.0.0.1", 0), BadServer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        bad = fault if "://" in fault else f"http://127.0.0.1:{server.server_port}/{fault}"
        path = fetch(GOOD, tmp_path / "root", [bad, str(tmp_path / "good")])
        assert path.read_bytes() == CONTENT
    finally:
        server.shutdown()
        server.server_close()


def test_concurrent_fetches_leave_one_intact_file(tmp_path: Path) -> None:
    write(tmp_path / "mirror" / GOOD.name, CONTENT)
    with ThreadPoolExecutor(8) as pool:
        jobs = [
            pool.submit(fetch, GOOD, tmp_path / "root", [str(tmp_path / "mirror")])
            for _ in range(32)
        ]
        assert {job.result().read_bytes() for job in jobs} == {CONTENT}
    assert len(list((tmp_path / "root").rglob("*.*"))) == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (CONTENT[:7], rf"small\.gz is truncated: expected {len(CONTENT)} bytes, found 7; delete"),
        (CONTENT + b"x", rf"is too long: expected {len(CONTENT)} bytes, found {len(CONTENT) + 1}"),
        (b"x" * len(CONTENT), rf"is damaged: expected MD5 {GOOD.md5}, found \w{{32}}; delete it"),
        (b"", rf"is truncated: expected {len(CONTENT)} bytes, found 0; delete it and run again"),
    ],
)
def test_damaged_file_is_named_and_never_used(tmp_path: Path, content: bytes, message: str) -> None:
    path = write(tmp_path / GOOD.name, content)
    write(tmp_path / "mirror" / GOOD.name, CONTENT)
    assert fetch(GOOD, tmp_path, [str(tmp_path / "mirror")]) == path
    assert path.read_bytes() == content  # it is not overwritten
    with pytest.raises(UserError, match=message):
        check_file(path, GOOD)


def test_each_file_is_hashed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = gzip.compress(idx_bytes((1, 28, 28), bytes(784)), mtime=0)
    labels = gzip.compress(idx_bytes((1,), bytes(1)), mtime=0)
    files = []
    for name, data in (("i.gz", content), ("l.gz", labels)):
        write(tmp_path / name, data)
        files.append(GzipFile(name, len(data), hashlib.md5(data).hexdigest(), 1))
    monkeypatch.setattr(fashion_mnist, "TRAIN_FILES", tuple(files))
    monkeypatch.setattr(fashion_mnist, "TEST_FILES", tuple(files))
    hashed = []
    known = fashion_mnist.find_problem

    def find_problem(content: bytes, file: GzipFile) -> str | None:
        hashed.append(file.name)
        return known(content, file)

    monkeypatch.setattr(fashion_mnist, "find_problem", find_problem)
    source = FashionMNIST(root=str(tmp_path))
    source.prepare()
    train, _ = source.load()
    assert train.images.shape == (1, 28, 28)
    assert hashed == ["i.gz", "l.gz"] * 2  # as training and as test files


def test_without_network_and_files_one_message_lists_every_failure(tmp_path: Path) -> None:
    nowhere = "http://127.0.0.1:9/fashion"  # the discard port: refused at once
    with pytest.raises(UserError) as caught:
        FashionMNIST(root=str(tmp_path), mirrors=[str(tmp_path / "usb"), nowhere]).prepare()
    text = str(caught.value)
    assert f"train-images-idx3-ubyte.gz is not under {tmp_path}" in text
    assert f"{tmp_path / 'usb'}: no such file" in text
    assert f"{nowhere}: <urlopen error" in text
    assert f"Put the four official .gz files into {tmp_path / TORCHVISION_FOLDER}" in text
    assert "data=synthetic" in text


def test_label_out_of_range_is_rejected(tmp_path: Path) -> None:
    images = write(tmp_path / "i.gz", gzip.compress(idx_bytes((1, 28, 28), bytes(784))))
    labels = write(tmp_path / "l.gz", gzip.compress(idx_bytes((1,), bytes([37]))))
    with pytest.raises(UserError, match="holds the label 37, expected 0 to 9"):
        read_labelled_images(images, labels, num_items=1)


def test_default_root_does_not_depend_on_the_current_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = FashionMNIST().root
    monkeypatch.chdir(tmp_path)
    assert FashionMNIST().root == before == fashion_mnist.BASE_DIR / "data"


def test_real_files_are_balanced_and_have_the_stated_mean_and_std(real_data: FashionMNIST) -> None:
    train, test = real_data.load()
    assert train.images.shape == (60000, 28, 28)
    assert test.images.shape == (10000, 28, 28)
    assert train.labels.bincount().tolist() == [6000] * len(CLASS_NAMES)
    assert test.labels.bincount().tolist() == [1000] * len(CLASS_NAMES)
    pixels = train.images.double() / 255
    assert float(pixels.mean()) == pytest.approx(PIXEL_MEAN, abs=5e-5)
    assert float(pixels.std()) == pytest.approx(PIXEL_STD, abs=5e-5)
