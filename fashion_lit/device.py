"""Which device trains, in which number format, and how its memory is kept and counted."""

import ctypes
import platform

import torch

MIXED_FP16, MIXED_BF16, FP32 = "16-mixed", "bf16-mixed", "32-true"  # Lightning's names
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
BF16_UNITS = ("amx_bf16", "avx512_bf16", "bf16")  # of CPUs that compute it, the fastest first


def resolve_accelerator(accelerator: str) -> str:
    """Turn Lightning's "auto" and "gpu" into "cuda", "mps" or "cpu", as Lightning does."""
    if accelerator not in ("auto", "gpu"):
        return accelerator
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


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

    "auto" becomes `native_precision`; so does fp16 on a CPU, which cannot compute it.
    """
    if requested == "auto":
        return native_precision(accelerator), ""
    if requested == MIXED_FP16 and accelerator == "cpu":
        chosen = native_precision(accelerator)
        return chosen, f"This CPU cannot train in fp16; it trains in {chosen} instead."
    return requested, ""


def keep_freed_memory() -> None:
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
