"""Probes for suspected faults on small tensors; each returns {"fault": True, False or None, …}."""

from typing import Any

import torch
from torch import Tensor, nn

from fashion_lit.data.datamodule import FashionMNISTDataModule
from fashion_lit.data.sources.synthetic import SyntheticGarments
from fashion_lit.models.optimization import OPTIMIZERS
from stopwatch import device_name, wait

NUM_WEIGHTS = 4096
NUM_COPIES = 50


def fused_sgd() -> dict[str, Any]:
    """Test whether SGD's momentum is uninitialised memory after fp16's scaler skips the first step.

    Without a GPU another kernel runs, so a correct result there proves nothing.
    """
    found: dict[str, Any] = {}
    for name, fused in (("plain", False), ("fused", True)):
        found[name] = greatest_weight_after_skipped_step(fused=fused)
    differs = not abs(found["fused"] - found["plain"]) < 1e-6  # NaN differs too
    return {"fault": differs if differs or device_name() == "cuda" else None, **found}


def greatest_weight_after_skipped_step(*, fused: bool) -> float:
    """Train weights for three steps, with infinite gradients in the first; return the greatest."""
    device = device_name()
    module = nn.Linear(NUM_WEIGHTS, 1, bias=False, device=device)
    nn.init.ones_(module.weight)
    dirty = [torch.full((NUM_WEIGHTS,), 1e30, device=device) for _ in range(64)]
    optimizer = OPTIMIZERS["sgd"](module, lr=0.1, momentum=0.9, fused=fused)
    scaler = torch.amp.GradScaler(device)
    del dirty  # later allocations may reuse this memory
    for factor in (float("inf"), 1.0, 1.0):
        optimizer.zero_grad()
        loss = (module.weight * factor).sum() / NUM_WEIGHTS
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
    return float(module.weight.detach().abs().max())


def early_reads() -> dict[str, Any]:
    """Test whether a batch moved from the GPU to the CPU is complete when it is read."""
    if device_name() == "cpu":
        return {"fault": None}
    source = SyntheticGarments(num_train=20, num_test=10)
    data = FashionMNISTDataModule(source, batch_size=10, val_size=10)
    labels = torch.zeros(64, dtype=torch.int64, device="cuda")
    late = 0
    for number in range(NUM_COPIES):
        images = torch.randn(64, 3, 224, 224, device="cuda") + number
        moved, _ = data.transfer_batch_to_device((images, labels), torch.device("cpu"), 0)
        seen = last_pixels(moved).clone()
        wait()
        late += not torch.equal(seen, last_pixels(moved))
    return {"fault": bool(late), f"late of {NUM_COPIES}": late}


def last_pixels(images: Tensor) -> Tensor:
    """Return the last eight pixels of images (B, C, H, W), which are copied last."""
    return images[-1, -1, -1, -8:]
