"""Small drawn data, a finished run, and the real files where the data module finds them."""

import gzip
import os
import shutil
import signal
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fashion_lit.commands.train import main as train_main
from fashion_lit.data.sources.fashion_mnist import MIRRORS, FashionMNIST
from fashion_lit.errors import UserError
from fashion_lit.runs import signals as stopping
from fashion_lit.runs.directory import RunDirectory

# Several tests run at once (pytest-xdist), each on one core, and so do the processes they start.
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)
SMALL = [
    "data=synthetic",
    "data.num_train=300",
    "data.num_test=101",
    "data.val_size=100",
    "data.batch_size=50",
    "data.eval_batch_size=40",
    "precision=fp32",
    "trainer.max_epochs=1",
    "trainer.accelerator=cpu",
    "trainer.enable_progress_bar=false",
    "tensorboard.pictures=false",
]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the arguments of the tests that draw at random."""
    group = parser.getgroup("random tests", "for tests/end_to_end/test_random.py")
    group.addoption("--random-seed", type=int, default=0, help="seed of the draws")
    group.addoption("--fault-rounds", type=int, default=60, help="rounds of the fault walker")
    group.addoption("--setting-draws", type=int, default=80, help="draws of the settings fuzzer")


@pytest.fixture(scope="session", autouse=True)
def default_signals() -> Iterator[None]:
    """Undo what nohup and background shells make tests inherit: ignored signals."""
    ignored = [s for s in signal.valid_signals() if signal.getsignal(s) == signal.SIG_IGN]
    stops = [s for s in ignored if signal.Signals(s).name in stopping.NAMES]
    for number in stops:
        is_interrupt = number == signal.SIGINT
        signal.signal(number, signal.default_int_handler if is_interrupt else signal.SIG_DFL)
    yield
    for number in stops:
        signal.signal(number, signal.SIG_IGN)


@pytest.fixture(scope="session")
def small() -> list[str]:
    """Overrides for a run of seconds."""
    return list(SMALL)


@pytest.fixture
def train(tmp_path: Path) -> Callable[..., RunDirectory]:
    """Run `fashion-lit train` on small data in this process; returns the finished run."""

    def run(*overrides: str) -> RunDirectory:
        directory = tmp_path / f"run{len(list(tmp_path.iterdir()))}"
        assert train_main([*SMALL, f"run_dir={directory.as_posix()}", *overrides]) == 0
        return RunDirectory(directory)

    return run


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide this machine's GPUs, if it has any."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """A finished run of the default model on small data, two epochs; not to be changed."""
    directory = tmp_path_factory.mktemp("finished") / "run"
    arguments = [*SMALL, "trainer.max_epochs=2", f"run_dir={directory.as_posix()}"]
    arguments += ["tensorboard.pictures=true", "tensorboard.norms_every_steps=3"]
    assert train_main(arguments) == 0
    return RunDirectory(directory)


@pytest.fixture
def run_copy(finished_run: RunDirectory, tmp_path: Path) -> RunDirectory:
    """A copy of the finished run that a test may change, alone in its folder."""
    return RunDirectory(Path(shutil.copytree(finished_run.path, tmp_path / "copy" / "run")))


@pytest.fixture(scope="session")
def real_data() -> FashionMNIST:
    """The real data set, if it can be had without a network."""
    source = FashionMNIST(mirrors=[mirror for mirror in MIRRORS if "://" not in mirror])
    try:
        source.prepare()
    except UserError as error:
        pytest.skip(f"needs the real Fashion-MNIST files: {error}")
    return source


def idx_bytes(values: np.ndarray) -> bytes:
    """An IDX file as the format's page describes it, written independently of the reader."""
    return (
        struct.pack(f">{1 + values.ndim}I", 0x0800 + values.ndim, *values.shape) + values.tobytes()
    )


@pytest.fixture(scope="session")
def idx_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four IDX files, plain and compressed: 100 and 25 images of 20 pixels, 5 classes by shade."""
    folder, random = tmp_path_factory.mktemp("idx") / "shades", np.random.RandomState(0)
    folder.mkdir()
    for split, count in (("train", 100), ("t10k", 25)):
        labels = (np.arange(count) % 5).astype(np.uint8)
        images = random.randint(0, 100, (count, 20, 20)).astype(np.uint8)
        images += 30 * labels[:, None, None]
        (folder / f"{split}-images-idx3-ubyte").write_bytes(idx_bytes(images))
        packed = gzip.compress(idx_bytes(labels), mtime=0)
        (folder / f"{split}-labels-idx1-ubyte.gz").write_bytes(packed)
    return folder


@pytest.fixture(scope="session")
def picture_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of 24 x 30 pixels in three classes by colour, 30 of each to train and 5 to test."""
    folder, random = tmp_path_factory.mktemp("pictures") / "colours", np.random.RandomState(0)
    for split, count in (("train", 30), ("test", 5)):
        for channel, name in enumerate(("Red car", "green", "blau")):
            (folder / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = random.randint(0, 130, (24, 30, 3)).astype(np.uint8)
                pixels[:, :, channel] += 100
                Image.fromarray(pixels).save(folder / split / name / f"{number}.png")
    return folder
