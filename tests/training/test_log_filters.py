"""Lightning's redundant messages are filtered out."""

import logging

import pytest

from fashion_lit.training.log_filters import silence_known_messages

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
