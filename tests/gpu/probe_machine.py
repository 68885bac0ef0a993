"""The probe of the machine: versions, hardware and peak speeds."""

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

import card
from stopwatch import milliseconds

PACKAGES = (
    "torch",
    "torchvision",
    "triton",
    "lightning",
    "torchmetrics",
    "numpy",
    "hydra-core",
    "omegaconf",
    "pydantic",
    "tensorboard",
    "matplotlib",
    "filelock",
    "pytest",
    "pytest-xdist",
    "typing-extensions",
)
QUERY = "name,driver_version,memory.total,memory.used,clocks.sm,mig.mode.current"


def environment() -> dict[str, Any]:
    """Return versions and, with a GPU, its peak speeds."""
    cuda = torch.cuda.is_available()
    found = {
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "nvidia-smi": card.nvidia_smi(f"--query-gpu={QUERY}", "--format=csv,noheader"),
        "gpus": torch.cuda.device_count(),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if cuda else None,
        "compilers": {name: compiler_version(name) for name in ("c++", "nvcc")},
        "float32 matrix products": torch.get_float32_matmul_precision(),
        "TF32 in convolutions": torch.backends.cudnn.allow_tf32,
        "versions": {name: package_version(name) for name in PACKAGES},
    }
    return found | gpu_speeds() if cuda else found


def package_version(name: str) -> str:
    """Return the version of an installed package, or "absent"."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "absent"


def compiler_version(name: str) -> str:
    """Return the first line of a compiler's --version, or "" if it cannot be run."""
    try:
        done = subprocess.run(
            [name, "--version"], capture_output=True, text=True, timeout=20, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip().partition("\n")[0]


def gpu_speeds() -> dict[str, Any]:
    """Return the GPU's name and its speed in copies and matrix products."""
    properties = torch.cuda.get_device_properties(0)
    num_bytes, side = 2**30, 8192
    source, target = (torch.empty(num_bytes, dtype=torch.uint8, device="cuda") for _ in range(2))
    left, right = (torch.randn(side, side, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    host = torch.empty(2**26, dtype=torch.uint8)
    copy_ms = milliseconds(lambda: target.copy_(source), 10)
    product_ms = milliseconds(lambda: left @ right, 10)
    host_ms = milliseconds(lambda: host.cuda(), 5)
    return {
        "gpu": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "bf16": torch.cuda.is_bf16_supported(including_emulation=False),
        "copy TB/s": 2 * num_bytes / copy_ms / 1e9,  # read and written
        "bf16 TFLOP/s": 2 * side**3 / product_ms / 1e9,
        "pageable host to device GB/s": len(host) / host_ms / 1e6,
    }
