"""The probes of the GPUs that `launcher=parallel` gives to its jobs."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

import card
from fashion_lit.sweeps.launchers import device_share

NUM_SLOTS = 2
PROBES = Path(__file__).with_name("probes.py")
PARTLY_VISIBLE = ("0,1", "0,-1")  # on a machine with one GPU


def share() -> dict[str, Any]:
    """Return the slots' devices in this environment, and the milliseconds to find them."""
    began = time.perf_counter()
    shares = [device_share(slot, NUM_SLOTS) for slot in range(NUM_SLOTS + 1)]
    return {
        "slots": [share.get("CUDA_VISIBLE_DEVICES") for share in shares],
        "visible": torch.cuda.device_count(),
        "initialised": torch.cuda.is_initialized(),
        "ms": 1000 * (time.perf_counter() - began),
    }


def shares() -> dict[str, Any]:
    """Return the slots' shares under several CUDA_VISIBLE_DEVICES.

    The fault is that a slot's device is not visible, so that it silently trains on the CPU.
    """
    values = {"unset": None, "''": "", "'0'": "0"}
    values |= {repr(value): value for value in PARTLY_VISIBLE}
    if uuids := card.uuids():
        values["a UUID"] = uuids[0]
    found: dict[str, Any] = {name: share_under(value) for name, value in values.items()}
    entries = {name: entry for name, entry in found.items() if isinstance(entry, dict)}
    partly = [entries[name] for name in map(repr, PARTLY_VISIBLE) if name in entries]
    fault = any(entry["visible"] == 1 and len(set(entry["slots"])) > 1 for entry in partly)
    any_gpu = any(entry["visible"] for entry in entries.values())
    return {"fault": fault if any_gpu else None, **found}


def share_under(value: str | None) -> dict[str, Any] | str:
    """Return the figures of `share` under a CUDA_VISIBLE_DEVICES, or its error output."""
    environment = {k: v for k, v in os.environ.items() if k != "CUDA_VISIBLE_DEVICES"}
    if value is not None:
        environment["CUDA_VISIBLE_DEVICES"] = value
    command = [sys.executable, str(PROBES), "share"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    return json.loads(done.stdout) if done.returncode == 0 else done.stderr[-300:]
