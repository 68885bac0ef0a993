"""Select the device and precision, tune malloc, and measure GPU memory."""

import ctypes
import os
import platform
from collections.abc import Mapping
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.accelerators import AcceleratorRegistry

from fashion_lit.config.schema import source_of
from fashion_lit.errors import UserError
from fashion_lit.models.build import check_network
from fashion_lit.text import did_you_mean

MIXED_FP16, MIXED_BF16, FP32 = "16-mixed", "bf16-mixed", "32-true"  # Lightning's names
SHORT_PRECISIONS = {"16": MIXED_FP16, "bf16": MIXED_BF16, "32": FP32, "64": "64-true"}
TF32 = "tf32"  # float32 whose products NVIDIA GPUs round to 10 mantissa bits
CLUSTER_VARIABLES = ("SLURM_NTASKS", "TORCHELASTIC_RUN_ID", "MASTER_ADDR")
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
BF16_UNITS = ("amx_bf16", "avx512_bf16", "bf16")  # CPU features for native bf16, fastest first


def resolve_accelerator(accelerator: str) -> str:
    """Resolve Lightning's "auto" and "gpu" to "cuda", "mps" or "cpu", as Lightning does."""
    if accelerator not in ("auto", "gpu"):
        return accelerator
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def is_available(accelerator: str) -> bool:
    """Return whether this machine has a device of a Lightning accelerator, such as "cuda"."""
    return AcceleratorRegistry[accelerator]["accelerator"].is_available()


def check_devices(trainer: Mapping[str, Any], data_device: str = "auto") -> None:
    """Raise UserError unless this machine has the devices of a configuration.

    Args:
        trainer: the configuration's `trainer`; only `accelerator`, `devices` and `num_nodes` are
            read.
        data_device: the configuration's `data.device`.
    """
    if data_device == "cuda" and not is_available("cuda"):
        raise UserError(
            "Expected a CUDA device for data.device=cuda, but PyTorch sees none; "
            "use data.device=auto."
        )
    num_nodes = trainer.get("num_nodes", 1)
    if num_nodes != 1 and not any(name in os.environ for name in CLUSTER_VARIABLES):
        raise UserError(
            f"Expected a cluster's job for trainer.num_nodes={num_nodes}, but none of its "
            f"variables is set ({', '.join(CLUSTER_VARIABLES)}); start the run by launcher=slurm, "
            "srun or torchrun."
        )
    wanted = trainer.get("accelerator", "auto")
    kinds = AcceleratorRegistry.available_accelerators()
    if wanted not in ("auto", "gpu", *kinds):
        raise UserError(
            f"Expected `trainer.accelerator` to be one of auto, gpu, {', '.join(sorted(kinds))}, "
            f"but got {wanted!r}{did_you_mean(str(wanted), ['auto', 'gpu', *kinds]) or '.'}"
        )
    found = resolve_accelerator(wanted)
    if not is_available(found) or (wanted == "gpu" and found == "cpu"):
        raise UserError(
            f"Expected a device for trainer.accelerator={wanted}, but PyTorch finds none on this "
            "machine; use trainer.accelerator=auto to select an available device."
        )
    kind = AcceleratorRegistry[found]["accelerator"]
    devices = trainer.get("devices", "auto")
    if devices == "auto":
        return
    try:
        kind.parse_devices(devices)
    except (MisconfigurationException, TypeError, ValueError):
        raise UserError(
            f"Expected `trainer.devices` to be a number or a list of this machine's devices, but "
            f"got {devices!r}: PyTorch finds {kind.auto_device_count()} of the kind {found}."
        ) from None


def check_memory(config: Mapping[str, Any]) -> None:
    """Raise UserError if the settings need more memory than the training device has.

    Counts what every run needs at least: weights with their gradients, average and optimizer state,
    one batch of the network's input, and the images.
    """
    data, optimizer = config["data"], config["optimizer"]["name"]
    source = source_of(config)
    num_weights = check_network(config, source)
    per_weight = 2 + (2 if optimizer.startswith("adam") else 1)
    per_weight += any(config["model"].get(key) is not None for key in ("ema_decay", "swa_start"))
    weights = 4 * num_weights * per_weight  # bytes, in float32
    num_images, num_test = source.num_train, source.num_test
    batch = (
        4
        * source.channels
        * (data["image_size"] or source.image_size) ** 2
        * max(
            min(data["batch_size"], num_images),
            min(data["eval_batch_size"], max(num_images, num_test)),
        )
    )
    bytes_per_pixel = 5 if data["name"] == "synthetic" else 1  # drawn in float32
    bytes_per_image = bytes_per_pixel * source.channels * source.image_size**2
    images = bytes_per_image * (num_images + num_test)
    needed, available = weights + batch + images, total_memory(config["trainer"])
    if needed > available:
        raise UserError(
            f"Expected settings that fit into the {available / 2**30:,.1f} GiB of memory, but they "
            f"need at least {needed / 2**30:,.1f} GiB: {weights / 2**30:,.1f} for {num_weights:,} "
            f"weights, {batch / 2**30:,.1f} for a batch, {images / 2**30:,.1f} for the images; "
            "lower the sizes in model, or data.batch_size, data.eval_batch_size or "
            "data.image_size."
        )


def total_memory(trainer: Mapping[str, Any]) -> float:
    """Return the memory of the training device in bytes; infinity if the system does not say."""
    if resolve_accelerator(trainer.get("accelerator", "auto")) == "cuda":
        return torch.cuda.get_device_properties(0).total_memory
    if not hasattr(os, "sysconf"):  # Windows
        return float("inf")
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def check_machine(config: Mapping[str, Any]) -> None:
    """Raise UserError unless this machine has the devices and the memory for a configuration."""
    check_devices(config["trainer"], config["data"]["device"])
    check_memory(config)


def num_devices(trainer: Mapping[str, Any]) -> int:
    """Return how many devices of this machine a configuration's `trainer` uses."""
    kind = AcceleratorRegistry[resolve_accelerator(trainer.get("accelerator", "auto"))]
    accelerator, devices = kind["accelerator"], trainer.get("devices", "auto")
    if devices == "auto":
        devices = accelerator.auto_device_count()
    return len(accelerator.get_parallel_devices(accelerator.parse_devices(devices)))


def native_precision(accelerator: str) -> str:
    """Return the fastest safe precision on "cpu", "cuda" or "mps".

    bf16 if the hardware supports it (emulated bf16 is slower than fp32), else fp16 on CUDA and
    fp32 on CPU; fp32 on MPS.
    """
    if accelerator == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return MIXED_BF16 if native else MIXED_FP16
    if accelerator == "cpu":
        capabilities = torch.cpu.get_capabilities()
        native = any(capabilities.get(name) for name in BF16_UNITS)
        return MIXED_BF16 if native else FP32
    return FP32


def choose_precision(requested: str | int, accelerator: str) -> tuple[str, str]:
    """Return Lightning's name of the precision to use, and a notice of a replacement, or "".

    "auto" becomes `native_precision`, and so does fp16 on a CPU, which does not support it. "tf32"
    is fp32 in Lightning; `set_tf32` enables it.
    """
    requested = SHORT_PRECISIONS.get(str(requested), str(requested))
    if requested == "auto":
        return native_precision(accelerator), ""
    if requested == MIXED_FP16 and accelerator == "cpu":
        chosen = native_precision(accelerator)
        return chosen, f"This CPU cannot train in fp16; it trains in {chosen} instead."
    if requested == TF32:
        has_units = accelerator == "cuda" and torch.cuda.is_tf32_supported()
        return FP32, "" if has_units else "This device does not support TF32; it uses fp32."
    return requested, ""


def set_tf32(requested: str | int, accelerator: str) -> None:
    """Enable TF32 for float32 products on CUDA for precision "tf32", and disable it for fp32.

    PyTorch's default enables it in convolutions but not in linear layers.
    """
    if accelerator == "cuda" and str(requested) in (FP32, "32", TF32):
        torch.set_float32_matmul_precision("high" if requested == TF32 else "highest")
        torch.backends.cudnn.allow_tf32 = requested == TF32


def timing_dependent_settings(trainer: Mapping[str, Any], accelerator: str) -> list[str]:
    """Return the enabled settings that select CUDA kernels by measured speed.

    Two runs may then use different kernels, and their results may differ in the last bits.
    """
    if accelerator != "cuda":
        return []
    return [f"trainer.{key}" for key in ("benchmark", "compile") if trainer.get(key)]


def tune_malloc() -> None:
    """Let glibc keep the memory of freed tensors for the next ones; no-op with other C libraries.

    By default glibc may return a step's activations to Linux, and the next step page-faults them
    in again, which takes up to an eighth of a step. See mallopt(3).
    """
    if platform.libc_ver()[0] != "glibc":
        return
    mallopt = ctypes.CDLL(None).mallopt
    # Set both: setting either one disables the dynamic adjustment of both, which would be worse.
    if mallopt(M_MMAP_THRESHOLD, 32 * 2**20):  # bytes; the maximum that every glibc accepts
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def reset_peak_memory(device: torch.device) -> None:
    """Measure a CUDA device's peak memory from now on; another run may have used it before."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device: torch.device) -> dict[str, float]:
    """Return a CUDA device's peak memory since the reset, in GiB; {} for other devices."""
    if device.type != "cuda":
        return {}
    return {
        "cuda/max_allocated_gib": torch.cuda.max_memory_allocated(device) / 2**30,
        "cuda/max_reserved_gib": torch.cuda.max_memory_reserved(device) / 2**30,
    }
