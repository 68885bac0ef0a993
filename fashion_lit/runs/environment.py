"""What a bit-identical result depends on in addition to configuration and seed."""

import platform

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
