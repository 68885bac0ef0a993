import ctypes
import platform
import subprocess
import sys

import pytest
import torch

from fashion_lit.device import (
    choose_precision,
    keep_freed_memory,
    native_precision,
    resolve_accelerator,
)


def test_bf16_is_chosen_only_where_the_cpu_computes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for capabilities, expected in [
        ({"avx512_bf16": True}, "bf16-mixed"),
        ({"avx512_bf16": False, "amx_bf16": True}, "bf16-mixed"),
        ({"avx2": True, "avx512_f": True}, "32-true"),
        ({}, "32-true"),
    ]:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda c=capabilities: c)
        assert choose_precision("auto", "cpu") == (expected, "")


def test_old_gpus_take_fp16(monkeypatch: pytest.MonkeyPatch) -> None:
    for native, expected in [(True, "bf16-mixed"), (False, "16-mixed")]:
        monkeypatch.setattr(
            torch.cuda, "is_bf16_supported", lambda including_emulation, n=native: n
        )
        assert native_precision("cuda") == expected


def test_fp16_on_a_cpu_is_replaced_and_said_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    precision, notice = choose_precision("16-mixed", "cpu")
    assert precision == "bf16-mixed"
    assert notice == "This CPU cannot train in fp16; it trains in bf16-mixed instead."
    assert choose_precision("16-mixed", "cuda") == ("16-mixed", "")


def test_explicit_choices_are_kept() -> None:
    assert choose_precision("32-true", "cuda") == ("32-true", "")
    assert choose_precision("bf16-mixed", "cpu") == ("bf16-mixed", "")


def test_auto_accelerator_is_what_lightning_picks() -> None:
    import lightning as L

    trainer = L.Trainer(logger=False, enable_checkpointing=False)
    assert resolve_accelerator("auto") == trainer.strategy.root_device.type
    assert resolve_accelerator("cpu") == "cpu"


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no mallopt")
def test_freed_memory_is_kept_for_the_next_tensors() -> None:
    # In a process of its own: the setting cannot be taken back.
    script = """
import resource, torch
from fashion_lit.device import keep_freed_memory

def faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def work() -> int:
    before = faults()
    tensors = [torch.ones(4 * 2**20) for _ in range(5)]  # of 16 MiB
    del tensors
    return faults() - before

usual = [work() for _ in range(4)][-1]
keep_freed_memory()
print(usual, [work() for _ in range(4)][-1])
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=300
    )
    usual, kept = map(int, done.stdout.split())
    assert kept <= usual / 4  # here 0, and 20,480 pages of 4 KiB


def test_other_c_libraries_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))  # macOS and Windows
    monkeypatch.setattr(ctypes, "CDLL", lambda name: pytest.fail(f"loads {name}"))
    keep_freed_memory()
