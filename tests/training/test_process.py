"""Redundant messages are filtered out, and a process is afterwards what it was before."""

import logging
import os
import random
import signal
import sys
import threading
import warnings
from typing import Literal

import numpy as np
import pytest
import torch

from fashion_lit.errors import UserError
from fashion_lit.training.process import LOGGERS, as_in_new_process, silence_known_messages

KNOWN = (
    "You are using a CUDA device ('H100') that has Tensor Cores. To properly utilize them, you …",
    "Using 16-bit Automatic Mixed Precision (AMP)",
    "Using 16bit Automatic Mixed Precision (AMP)",
    "Using bfloat16 Automatic Mixed Precision (AMP)",
)


@pytest.mark.parametrize("name", ["lightning.pytorch", "lightning.fabric"])
def test_known_messages_are_silent_and_others_are_not(name: str) -> None:
    logger, handler = logging.getLogger(name), logging.StreamHandler()
    logger.addHandler(handler)  # as Lightning does, unless pytest has configured logging first
    try:
        silence_known_messages()
    finally:
        logger.removeHandler(handler)
    for text, is_shown in (*((known, False) for known in KNOWN), ("Something new", True)):
        record = logging.LogRecord(name, logging.INFO, "", 0, text, (), None)
        assert bool(handler.filter(record)) == is_shown, text


def state() -> list[object]:
    """What a caller of the Python API can see of a process's state."""
    filters = [h.filters[:] for name in LOGGERS for h in logging.getLogger(name).handlers]
    return [
        torch.get_default_dtype(),
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.is_anomaly_enabled(),
        torch.backends.cudnn.benchmark,
        torch.backends.cudnn.deterministic,
        torch.backends.cudnn.allow_tf32,
        torch.backends.cuda.matmul.fp32_precision,
        torch.get_float32_matmul_precision(),
        torch.get_rng_state().tolist(),
        np.random.get_state()[1].tolist(),  # type: ignore[index]
        random.getstate(),
        dict(os.environ),
        warnings.filters[:],
        filters,
        signal.getsignal(signal.SIGINT),
        sys.argv[:],
    ]


def change_everything(precision: Literal["high", "medium"]) -> None:
    torch.set_default_dtype(torch.float64)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.autograd.set_detect_anomaly(True)
    torch.backends.cudnn.benchmark = torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.allow_tf32 = False
    torch.set_float32_matmul_precision(precision)
    for seed in (torch.manual_seed, np.random.seed, random.seed):
        seed(5)
    os.environ["FASHION_LIT_TEST"] = precision
    warnings.filterwarnings("ignore", message=precision)
    silence_known_messages()


def test_the_state_is_a_new_processs_and_is_restored() -> None:
    new = [torch.float32, False, False, False, False, False, True]
    before = state()
    with as_in_new_process():  # restores what this test changes
        change_everything("high")
        theirs = state()
        with as_in_new_process():
            assert state()[:7] == new
            assert torch.get_float32_matmul_precision() == "highest"
            assert state()[9:] == theirs[9:]  # a training seeds its generators itself
            change_everything("medium")
        assert state() == theirs
    assert state() == before


def test_a_training_is_no_part_of_the_callers_autocast_or_inference() -> None:
    message = "outside of torch.autocast"
    with torch.autocast("cpu"), pytest.raises(UserError, match=message), as_in_new_process():
        pass
    with torch.inference_mode(), as_in_new_process():
        assert torch.zeros(1, requires_grad=True).exp().requires_grad
    torch.backends.mkldnn.enabled = False
    try:
        with as_in_new_process():
            assert torch.backends.mkldnn.enabled
        assert not torch.backends.mkldnn.enabled
    finally:
        torch.backends.mkldnn.enabled = True


def test_threads_take_turns() -> None:
    order = []

    def enter() -> None:
        with as_in_new_process():
            order.append("other")

    other = threading.Thread(target=enter)
    with as_in_new_process():
        other.start()
        other.join(timeout=0.2)
        assert other.is_alive()
        order.append("first")
    other.join()
    assert order == ["first", "other"]
