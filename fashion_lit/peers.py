"""The same work as the two reports did it: torchvision data sets, DataLoaders, a plain loop.

Written as users of torchvision and PyTorch write it; `benchmark` measures against it.
"""

import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader
from torchvision.datasets import FashionMNIST
from torchvision.transforms import Compose, Grayscale, Normalize, Resize, ToTensor, v2

from fashion_lit.datamodule import Batch
from fashion_lit.fashion_mnist import PIXEL_MEAN, PIXEL_STD, LabelledImages

NUM_WARM_UP_STEPS = 2  # before the clock starts
# What each image goes through, one at a time.
TRANSFORMS: dict[str, Callable[[Any], Tensor]] = {
    "report A, 224 px": Compose([Resize(224), Grayscale(3), ToTensor()]),
    "report B, 28 px": Compose([ToTensor(), Normalize((PIXEL_MEAN,), (PIXEL_STD,))]),
    "flip, crop, erasing, 28 px": v2.Compose(
        [
            v2.ToImage(),
            v2.RandomHorizontalFlip(),
            v2.RandomCrop(28, padding=2),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize((PIXEL_MEAN,), (PIXEL_STD,)),
            v2.RandomErasing(p=1.0, scale=(0.08, 0.08), ratio=(1, 1)),
        ]
    ),
}


def write_torchvision_files(data: LabelledImages, root: Path) -> None:
    """Write images and labels where and as torchvision's FashionMNIST reads them, uncompressed."""
    folder = root / "FashionMNIST" / "raw"
    folder.mkdir(parents=True, exist_ok=True)
    for name, values in (("images-idx3", data.images), ("labels-idx1", data.labels)):
        sizes = np.array(values.shape, dtype=">u4").tobytes()
        header = bytes((0, 0, 8, values.ndim)) + sizes
        content = header + values.to(torch.uint8).numpy().tobytes()
        for split in ("train", "t10k"):  # torchvision wants both
            (folder / f"{split}-{name}-ubyte").write_bytes(content)


def loader(
    root: Path, transform_name: str, batch_size: int, num_workers: int
) -> "DataLoader[Batch]":
    """Return a shuffled DataLoader over torchvision's data set."""
    dataset = FashionMNIST(str(root), train=True, transform=TRANSFORMS[transform_name])
    return DataLoader(dataset, batch_size=batch_size, shuffle=True, num_workers=num_workers)


def train_plainly(
    network: nn.Module,
    batches: Callable[[], Iterable[Batch]],
    optimizer: Optimizer,
    scheduler: LRScheduler | None,
    *,
    num_steps: int,
    label_smoothing: float,
    autocast: torch.dtype | None = None,
) -> float:
    """Train for `num_steps`, after NUM_WARM_UP_STEPS; returns steps per second.

    Args:
        network: on its device.
        batches: makes an epoch of them.
        optimizer: of its parameters.
        scheduler: stepped after every batch, or None.
        num_steps: that are measured.
        label_smoothing: of the loss.
        autocast: compute in this type, or None for float32.
    """
    device = next(network.parameters()).device
    loss_function = nn.CrossEntropyLoss(label_smoothing=label_smoothing)
    network.train()
    began, steps_done = 0.0, -NUM_WARM_UP_STEPS
    while True:
        for images, labels in batches():
            if steps_done == 0:
                wait_for(device)
                began = time.perf_counter()
            images, labels = images.to(device), labels.to(device)
            with torch.autocast(device.type, autocast, enabled=autocast is not None):
                loss = loss_function(network(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if scheduler is not None:
                scheduler.step()
            steps_done += 1
            if steps_done == num_steps:
                wait_for(device)
                return num_steps / (time.perf_counter() - began)


def wait_for(device: torch.device) -> None:
    """Wait until a GPU has done what it was asked to; a CPU has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
