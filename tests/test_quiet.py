"""What Lightning says and nobody needs."""

import logging

import pytest

from fashion_lit.quiet import silence_known_messages

KNOWN = (
    "You are using a CUDA device ('H100') that has Tensor Cores. To properly utilize them, you …",
    "Using 16-bit Automatic Mixed Precision (AMP)",
    "Using 16bit Automatic Mixed Precision (AMP)",
    "Using bfloat16 Automatic Mixed Precision (AMP)",
)


@pytest.mark.parametrize("logger", ["lightning.pytorch", "lightning.fabric"])
def test_known_messages_are_silent_and_others_are_not(logger: str) -> None:
    silence_known_messages()
    handlers = logging.getLogger(logger).handlers
    assert handlers
    for handler in handlers:
        for message, heard in ((KNOWN, False), (("Something new",), True)):
            for text in message:
                record = logging.LogRecord(logger, logging.INFO, "", 0, text, (), None)
                assert bool(handler.filter(record)) == heard, text
