"""What a training changes in its process: filters of messages, torch's flags, seeds, variables.

A command's process ends with its training. In a process of the user, `as_in_new_process` makes
torch's state what it is in a new one, and afterwards what it was before.
"""

import logging
import os
import random
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch

from fashion_lit.errors import UserError

# Beginnings of Lightning's INFO messages, and why they are redundant.
MESSAGES = (
    "GPU available:",  # the run's own first line names the device
    "TPU available:",
    "💡 Tip:",  # advertisements
    "Using bfloat16 Automatic Mixed Precision",  # the run's own first line names the precision
    "Using 16bit Automatic Mixed Precision",
    "Using 16-bit Automatic Mixed Precision",  # Fabric's spelling
    "You are using a CUDA device",  # with Tensor Cores, which bf16, fp16 and precision=tf32 use
    "LOCAL_RANK:",
    "Loading `train_dataloader` to estimate number of stepping batches.",
    "`Trainer.fit` stopped: `max_epochs=",  # the table shows it
    "`Trainer(limit_",  # repeats the user's override
    "Restoring states from the checkpoint path",
    "Restored all states from the checkpoint",
    "Loaded model weights from the checkpoint",
)
# Warnings: regular expressions that match their beginning.
WARNINGS = (
    # log_every_n_steps is the spacing of two curves; a shorter epoch may have no point.
    r"The number of training batches \(\d+\) is smaller than the logging interval",
    # The metrics sum over ranks before they are logged.
    r"It is recommended to use `self\.log\('.*', \.\.\., sync_dist=True\)`",
    # fp16's GradScaler may skip the first step while it searches for its scale.
    r"Detected call of `lr_scheduler\.step\(\)` before `optimizer\.step\(\)`",
    # Lightning's own use of torch's pytree.
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",
    # Raised for debug=overfit, which repeats its batches on purpose.
    r"You requested to overfit but enabled train dataloader shuffling",
    # Raised for model.freeze_backbone, which freezes the batch statistics on purpose.
    r"Found \d+ module\(s\) in eval mode at the start of training",
    # A resumed run finds its own checkpoints, and resumes exactly even in mid-epoch.
    r"Checkpoint directory .* exists and is not empty",
    r"You're resuming from a checkpoint that ended before the epoch ended",
    # Raised on every login node; launcher=slurm uses srun.
    r"The `srun` command is available on your system but is not used",
    # The ranks share the evaluation images, each exactly once.
    r"Using `DistributedSampler` with the dataloaders",
)

LOGGERS = ("lightning.pytorch", "lightning.fabric")
# How to read and set what a training depends on, and the value in a new process.
FLAGS: tuple[tuple[Callable[[], Any], Callable[[Any], object], Any], ...] = (
    (torch.get_default_dtype, torch.set_default_dtype, torch.float32),
    (torch.get_default_device, torch.set_default_device, torch.device("cpu")),
    (torch.get_deterministic_debug_mode, torch.set_deterministic_debug_mode, 0),
    (torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly, False),
    (
        lambda: torch.backends.mkldnn.enabled,
        lambda value: setattr(torch.backends.mkldnn, "enabled", value),
        True,
    ),
    *(
        (
            lambda name=name: getattr(torch.backends.cudnn, name),
            lambda value, name=name: setattr(torch.backends.cudnn, name, value),
            default,
        )
        for name, default in (("benchmark", False), ("deterministic", False), ("allow_tf32", True))
    ),
)
_LOCK = threading.RLock()


@contextmanager
def as_in_new_process() -> Iterator[None]:
    """Give torch the state of a new process, and restore its state and Python's afterwards.

    Restores torch's flags, the generators of torch, NumPy and `random`, environment variables, and
    the filters of warnings and of Lightning's messages. All of these are the process's, so threads
    take turns. Raises UserError within torch.autocast, whose cached weights cannot be kept apart.
    """
    if any(map(torch.is_autocast_enabled, ("cpu", "cuda"))):
        raise UserError(
            "Expected a call outside of torch.autocast, because the run's `precision` decides; "
            "leave its `with` block."
        )
    with _LOCK, ExitStack() as stack:
        for read, write, default in FLAGS:
            stack.callback(_set_if_different, read, write, read())
            _set_if_different(read, write, default)
        products = torch.backends.cuda.matmul.fp32_precision
        stack.callback(_restore_matmul_precision, _matmul_precision(), products)
        if _matmul_precision() != "highest":
            torch.set_float32_matmul_precision("highest")
        stack.callback(random.setstate, random.getstate())
        stack.callback(np.random.set_state, np.random.get_state())
        stack.enter_context(torch.inference_mode(False))
        initialized = torch.cuda.is_initialized()
        devices = range(torch.cuda.device_count()) if initialized else ()
        stack.enter_context(torch.random.fork_rng(devices))
        stack.callback(_restore_variables, dict(os.environ))
        stack.enter_context(warnings.catch_warnings())
        for handler in (h for name in LOGGERS for h in logging.getLogger(name).handlers):
            stack.callback(setattr, handler, "filters", list(handler.filters))
        yield


def _set_if_different(read: Callable[[], Any], write: Callable[[Any], object], value: Any) -> None:
    if read() != value:
        write(value)


def _matmul_precision() -> str | None:
    """Return the precision of float32 products; None if it was set by torch.backends alone."""
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:
        return None


def _restore_matmul_precision(value: str | None, products: Any) -> None:
    if value is not None and _matmul_precision() != value:
        torch.set_float32_matmul_precision(value)
    if torch.backends.cuda.matmul.fp32_precision != products:
        torch.backends.cuda.matmul.fp32_precision = products


def _restore_variables(before: dict[str, str]) -> None:
    for name in os.environ.keys() - before.keys():
        del os.environ[name]
    for name, value in before.items():
        if os.environ.get(name) != value:
            os.environ[name] = value


def silence_known_messages() -> None:
    """Install the filters; further calls have no effect."""
    for name in LOGGERS:
        for handler in logging.getLogger(name).handlers:
            handler.addFilter(_is_not_silenced)
    for beginning in WARNINGS:
        warnings.filterwarnings("ignore", message=beginning)


def _is_not_silenced(record: logging.LogRecord) -> bool:
    return not record.getMessage().lstrip().startswith(MESSAGES)
