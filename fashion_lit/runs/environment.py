"""What a bit-identical result depends on in addition to configuration and seed; the CPU's name."""

import platform
import re
from functools import cache
from pathlib import Path

import lightning as L
import torch


def environment(trainer: L.Trainer) -> dict[str, str]:
    """Return what a bit-identical result depends on in addition to configuration and seed."""
    device = trainer.strategy.root_device
    cuda = device.type == "cuda"
    threads = {"threads": str(torch.get_num_threads())} if device.type == "cpu" else {}
    return threads | {
        "device": torch.cuda.get_device_name(device) if cuda else device.type,
        "machine": platform.machine(),
        "processes": str(trainer.world_size),
        "precision": str(trainer.precision),
        "torch": str(torch.__version__),
        "lightning": L.__version__,
    }


@cache
def processor() -> str:
    """Return the CPU's name, such as "AMD EPYC"; "" if the system does not tell."""
    cpuinfo = Path("/proc/cpuinfo")  # of Linux, where Python does not know the name
    text = cpuinfo.read_text(errors="replace") if cpuinfo.is_file() else ""
    found = re.search(r"^model name\s*: (.+)$", text, flags=re.M)
    return found[1].strip() if found else platform.processor()
