"""Which device trains, in which number format, and how its memory is kept and counted."""

import ctypes
import platform
from collections.abc import Mapping
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.accelerators import AcceleratorRegistry

from fashion_lit.errors import UserError

MIXED_FP16, MIXED_BF16, FP32 = "16-mixed", "bf16-mixed", "32-true"  # Lightning's names
TF32 = "tf32"  # float32, of whose products NVIDIA's GPUs keep 10 bits
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
BF16_UNITS = ("amx_bf16", "avx512_bf16", "bf16")  # of CPUs that compute it, the fastest first


def resolve_accelerator(accelerator: str) -> str:
    """Turn Lightning's "auto" and "gpu" into "cuda", "mps" or "cpu", as Lightning does."""
    if accelerator not in ("auto", "gpu"):
        return accelerator
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def is_available(accelerator: str) -> bool:
    """Whether there is a device of this kind here, "cpu", "cuda" or another one of Lightning's."""
    return AcceleratorRegistry[accelerator]["accelerator"].is_available()


def check_devices(trainer: Mapping[str, Any], data_device: str = "auto") -> None:
    """Raise UserError unless this machine has the devices that a configuration asks for.

    Args:
        trainer: its `trainer`, of which `accelerator` and `devices` count.
        data_device: its `data.device`.
    """
    if data_device == "cuda" and not is_available("cuda"):
        raise UserError(
            "Expected a CUDA device for data.device=cuda, but PyTorch sees none; "
            "use data.device=auto."
        )
    wanted = trainer.get("accelerator", "auto")
    kinds = AcceleratorRegistry.available_accelerators()
    if wanted not in ("auto", "gpu", *kinds):
        raise UserError(
            f"Expected `trainer.accelerator` to be one of auto, gpu, {', '.join(sorted(kinds))}, "
            f"but got {wanted!r}."
        )
    found = resolve_accelerator(wanted)
    if not is_available(found) or (wanted == "gpu" and found == "cpu"):
        raise UserError(
            f"Expected a device for trainer.accelerator={wanted}, but PyTorch finds none on this "
            "machine; use trainer.accelerator=auto, which takes what is there."
        )
    kind = AcceleratorRegistry[found]["accelerator"]
    devices = trainer.get("devices", "auto")
    if devices == "auto":
        return
    try:
        kind.parse_devices(devices)
    except (MisconfigurationException, TypeError, ValueError):
        raise UserError(
            f"Expected `trainer.devices` to be a number of devices, or a list of some that are "
            f"there, but got {devices!r}: PyTorch finds {kind.auto_device_count()} of the kind "
            f"{found} on this machine."
        ) from None


def num_devices(trainer: Mapping[str, Any]) -> int:
    """Return how many devices of this machine a configuration's `trainer` takes."""
    kind = AcceleratorRegistry[resolve_accelerator(trainer.get("accelerator", "auto"))]
    accelerator, devices = kind["accelerator"], trainer.get("devices", "auto")
    if devices == "auto":
        devices = accelerator.auto_device_count()
    return len(accelerator.get_parallel_devices(accelerator.parse_devices(devices)))


def native_precision(accelerator: str) -> str:
    """Return the fastest safe precision of "cpu", "cuda" or "mps".

    bf16 where the hardware computes it (emulated, it is slower than fp32), else fp16 on CUDA.
    """
    if accelerator == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return MIXED_BF16 if native else MIXED_FP16
    if accelerator == "cpu":
        capabilities = torch.cpu.get_capabilities()
        native = any(capabilities.get(name) for name in BF16_UNITS)
        return MIXED_BF16 if native else FP32
    return FP32


def choose_precision(requested: str, accelerator: str) -> tuple[str, str]:
    """Return Lightning's name of the precision to use, and a notice ('' if there is none).

    "auto" becomes `native_precision`; so does fp16 on a CPU, which cannot compute it. "tf32" is
    fp32 to Lightning; `set_tf32` makes the difference.
    """
    if requested == "auto":
        return native_precision(accelerator), ""
    if requested == MIXED_FP16 and accelerator == "cpu":
        chosen = native_precision(accelerator)
        return chosen, f"This CPU cannot train in fp16; it trains in {chosen} instead."
    if requested == TF32:
        has_units = accelerator == "cuda" and torch.cuda.is_tf32_supported()
        return FP32, "" if has_units else "This device has no TF32; it computes in fp32 instead."
    return requested, ""


def set_tf32(requested: str, accelerator: str) -> None:
    """Let CUDA round float32 products to TF32 in precision "tf32", and not in fp32.

    By default PyTorch does so in convolutions, and not in linear layers.
    """
    if accelerator == "cuda" and requested in (FP32, TF32):
        torch.set_float32_matmul_precision("high" if requested == TF32 else "highest")
        torch.backends.cudnn.allow_tf32 = requested == TF32


def chooses_by_timing(trainer: Mapping[str, Any], accelerator: str) -> list[str]:
    """Return the settings for which CUDA's kernels are chosen by how fast they just were.

    Two runs may then take different ones, and differ in the last bits.
    """
    if accelerator != "cuda":
        return []
    return [f"trainer.{key}" for key in ("benchmark", "compile") if trainer.get(key)]


def tune_malloc() -> None:
    """Let the C library keep the memory of freed tensors for the next ones; glibc only.

    By default it may give a step's activations back to Linux, which hands the same pages out again
    one fault at a time: up to an eighth of a step. See mallopt(3).
    """
    if platform.libc_ver()[0] != "glibc":
        return
    mallopt = ctypes.CDLL(None).mallopt
    # One without the other would be worse than none: the library then stops adapting both.
    if mallopt(M_MMAP_THRESHOLD, 32 * 2**20):  # bytes, the most that every glibc takes
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def peak_memory(device: torch.device) -> dict[str, float]:
    """Return the peak memory of a CUDA device in GiB; nothing for other devices."""
    if device.type != "cuda":
        return {}
    return {
        "cuda/max_allocated_gib": torch.cuda.max_memory_allocated(device) / 2**30,
        "cuda/max_reserved_gib": torch.cuda.max_memory_reserved(device) / 2**30,
    }
