"""The probes of what `launcher=parallel` gives its jobs."""

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
    """Return what the slots get in this environment, and what it costs to find out."""
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

    The fault: a slot whose device is not among the visible ones trains on the CPU without a word.
    """
    values = {"unset": None, "''": "", "'0'": "0"}
    values |= {repr(value): value for value in PARTLY_VISIBLE}
    if uuids := card.uuids():
        values["a UUID"] = uuids[0]
    found: dict[str, Any] = {name: share_under(value) for name, value in values.items()}
    told = {name: entry for name, entry in found.items() if isinstance(entry, dict)}
    partly = [told[name] for name in map(repr, PARTLY_VISIBLE) if name in told]
    fault = any(entry["visible"] == 1 and len(set(entry["slots"])) > 1 for entry in partly)
    return {"fault": fault if any(entry["visible"] for entry in told.values()) else None, **found}


def share_under(value: str | None) -> dict[str, Any] | str:
    """Return what `share` gives under a CUDA_VISIBLE_DEVICES, or what it fails with."""
    environment = {k: v for k, v in os.environ.items() if k != "CUDA_VISIBLE_DEVICES"}
    if value is not None:
        environment["CUDA_VISIBLE_DEVICES"] = value
    command = [sys.executable, str(PROBES), "share"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    return json.loads(done.stdout) if done.returncode == 0 else done.stderr[-300:]
