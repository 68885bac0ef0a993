"""The baselines of `benchmark`: torchvision data sets, DataLoaders and a plain training loop.

They are written as the course reports, and users of torchvision and PyTorch in general, do it.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader, Subset, default_collate
from torchvision.datasets import FashionMNIST
from torchvision.transforms import (
    Compose,
    Grayscale,
    InterpolationMode,
    Normalize,
    Resize,
    ToTensor,
    v2,
)

from fashion_lit.benchmarking.timing import wait_for
from fashion_lit.data.sources.fashion_mnist import NUM_CLASSES, PIXEL_MEAN, PIXEL_STD
from fashion_lit.data.sources.source import LabelledImages
from fashion_lit.data.types import Batch

NUM_WARM_UP_STEPS = 2  # before the clock starts
BILINEAR = InterpolationMode.BILINEAR
NORMALIZE = v2.Normalize((PIXEL_MEAN,), (PIXEL_STD,))
TO_FLOAT = v2.ToDtype(torch.float32, scale=True)
ERASE = {"scale": (0.02, 0.4), "ratio": (0.3, 1 / 0.3), "value": "random"}
# The transforms of each pipeline, applied to one image at a time.
TRANSFORMS: dict[str, Callable[[Any], Tensor]] = {
    "report A, 224 px": Compose([Resize(224), Grayscale(3), ToTensor()]),
    "report B, 28 px": Compose([ToTensor(), Normalize((PIXEL_MEAN,), (PIXEL_STD,))]),
    "flip, crop, erasing, 28 px": v2.Compose(
        [
            v2.ToImage(),
            v2.RandomHorizontalFlip(),
            v2.RandomCrop(28, padding=2),
            TO_FLOAT,
            NORMALIZE,
            v2.RandomErasing(p=1.0, scale=(0.08, 0.08), ratio=(1, 1)),
        ]
    ),
    "rotation, size, shear, 28 px": v2.Compose(
        [
            v2.ToImage(),
            v2.RandomAffine([-10, 10], scale=(0.9, 1.1), shear=[-10, 10], interpolation=BILINEAR),
            TO_FLOAT,
            NORMALIZE,
        ]
    ),
    "brightness, contrast, 28 px": v2.Compose(
        [v2.ToImage(), v2.ColorJitter(brightness=0.2, contrast=0.2), TO_FLOAT, NORMALIZE]
    ),
    "TrivialAugment, 28 px": v2.Compose(
        [v2.ToImage(), v2.TrivialAugmentWide(interpolation=BILINEAR), TO_FLOAT, NORMALIZE]
    ),
    "random erasing, 28 px": v2.Compose(
        [v2.ToImage(), TO_FLOAT, NORMALIZE, v2.RandomErasing(p=0.5, **ERASE)]
    ),
    "mixup, 28 px": v2.Compose([v2.ToImage(), TO_FLOAT, NORMALIZE]),
    "CutMix, 28 px": v2.Compose([v2.ToImage(), TO_FLOAT, NORMALIZE]),
    "strong, 28 px": v2.Compose(
        [
            v2.ToImage(),
            v2.RandomHorizontalFlip(),
            v2.RandomCrop(28, padding=2),
            TO_FLOAT,
            NORMALIZE,
            v2.RandomErasing(p=0.5, **ERASE),
        ]
    ),
}
MIXUP = v2.MixUp(alpha=0.2, num_classes=NUM_CLASSES)
CUTMIX = v2.CutMix(alpha=1.0, num_classes=NUM_CLASSES)
# The transforms that follow, applied to one batch at a time: torchvision draws once for all images.
BATCH_TRANSFORMS: dict[str, Callable[[Tensor, Tensor], Batch]] = {
    "mixup, 28 px": MIXUP,
    "CutMix, 28 px": CUTMIX,
    "strong, 28 px": v2.RandomChoice([CUTMIX, MIXUP, v2.Identity()], p=[0.5, 0.25, 0.25]),
}


def write_torchvision_files(data: LabelledImages, root: Path) -> None:
    """Write images and labels as the uncompressed files that torchvision's FashionMNIST reads.

    The training and the test files get the same contents.
    """
    folder = root / "FashionMNIST" / "raw"
    folder.mkdir(parents=True, exist_ok=True)
    for name, values in (("images-idx3", data.images), ("labels-idx1", data.labels)):
        sizes = np.array(values.shape, dtype=">u4").tobytes()
        header = bytes((0, 0, 8, values.ndim)) + sizes
        content = header + values.to(torch.uint8).numpy().tobytes()
        for split in ("train", "t10k"):  # torchvision requires both
            (folder / f"{split}-{name}-ubyte").write_bytes(content)


def loader(
    root: Path,
    transform_name: str,
    batch_size: int,
    num_workers: int,
    *,
    indices: Sequence[int] | None = None,
    shuffle: bool = True,
) -> "DataLoader[Batch]":
    """Return a DataLoader over torchvision's data set, or over its subset `indices`."""
    images = FashionMNIST(str(root), train=True, transform=TRANSFORMS[transform_name])
    dataset = images if indices is None else Subset(images, indices)
    return DataLoader(
        dataset,
        batch_size=batch_size,
        shuffle=shuffle,
        num_workers=num_workers,
        collate_fn=partial(collate, transform_name),
    )


def collate(transform_name: str, samples: Sequence[Any]) -> Batch:
    """Return a batch of images and labels, mixed by BATCH_TRANSFORMS if it has the pipeline."""
    images, labels = default_collate(list(samples))
    mixed = BATCH_TRANSFORMS.get(transform_name)
    return (images, labels) if mixed is None else mixed(images, labels)


class PlainLoop:
    """A training loop as users of PyTorch write it.

    Args:
        network: the network, already on its device.
        optimizer: the optimizer of its parameters.
        scheduler: stepped after every batch, or None.
        label_smoothing: label smoothing of the cross-entropy loss.
        autocast: the dtype of mixed precision, or None for float32.
    """

    def __init__(
        self,
        network: nn.Module,
        optimizer: Optimizer,
        scheduler: LRScheduler | None,
        *,
        label_smoothing: float,
        autocast: torch.dtype | None = None,
    ) -> None:
        self.network = network
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.loss_function = nn.CrossEntropyLoss(label_smoothing=label_smoothing)
        self.device = next(network.parameters()).device
        self.autocast = torch.autocast(self.device.type, autocast, enabled=autocast is not None)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=autocast == torch.float16)  # pyright: ignore[reportPrivateImportUsage]

    def step(self, batch: Batch) -> None:
        """Train on one batch."""
        images, labels = (part.to(self.device) for part in batch)
        with self.autocast:
            loss = self.loss_function(self.network(images), labels)
        self.optimizer.zero_grad()
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.scheduler is not None:
            self.scheduler.step()

    def steps_per_second(self, batches: Iterable[Batch], num_steps: int) -> float:
        """Return the steps per second of `num_steps` steps after NUM_WARM_UP_STEPS untimed ones.

        Repeats `batches` as often as needed.
        """
        self.network.train()
        began, steps_done = 0.0, -NUM_WARM_UP_STEPS
        while True:
            for batch in batches:
                if steps_done == 0:
                    wait_for(self.device)
                    began = time.perf_counter()
                self.step(batch)
                steps_done += 1
                if steps_done == num_steps:
                    wait_for(self.device)
                    return num_steps / (time.perf_counter() - began)

    def seconds_until(
        self,
        target: float,
        train: Iterable[Batch],
        validation: Iterable[Batch],
        num_epochs: int,
    ) -> tuple[float, bool]:
        """Train until the accuracy after an epoch reaches `target`, or for `num_epochs`.

        Returns the elapsed seconds and whether the target was reached.
        """
        began = time.perf_counter()
        for _ in range(num_epochs):
            self.network.train()
            for batch in train:
                self.step(batch)
            if self.accuracy(validation) >= target:
                return time.perf_counter() - began, True
        return time.perf_counter() - began, False

    @torch.no_grad()
    def accuracy(self, batches: Iterable[Batch]) -> float:
        """Return the fraction of images that the network classifies correctly, in [0, 1]."""
        self.network.eval()
        num_correct = num_images = 0
        for images, labels in batches:
            with self.autocast:
                predicted = self.network(images.to(self.device)).argmax(1)
            num_correct += int((predicted == labels.to(self.device)).sum())
            num_images += len(labels)
        return num_correct / num_images
