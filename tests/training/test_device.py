import ctypes
import platform
import re
import subprocess
import sys

import pytest
import torch

from fashion_lit.benchmarking.timing import kernels_restored
from fashion_lit.config.compose import compose_jobs
from fashion_lit.config.overrides import prepare_overrides
from fashion_lit.errors import UserError
from fashion_lit.training.device import (
    check_devices,
    check_memory,
    choose_precision,
    native_precision,
    num_devices,
    resolve_accelerator,
    set_tf32,
    timing_dependent_settings,
    tune_malloc,
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


def test_fp16_on_a_cpu_is_replaced_with_a_notice(monkeypatch: pytest.MonkeyPatch) -> None:
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
    # In a separate process: the setting cannot be undone.
    script = """
import resource, torch
from fashion_lit.training.device import tune_malloc

def faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def work() -> int:
    before = faults()
    tensors = [torch.ones(4 * 2**20) for _ in range(5)]  # of 16 MiB
    del tensors
    return faults() - before

usual = [work() for _ in range(4)][-1]
tune_malloc()
print(usual, [work() for _ in range(4)][-1])
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=300
    )
    usual, kept = map(int, done.stdout.split())
    assert kept <= usual / 4  # measured: 0 instead of 20,480 faults (pages of 4 KiB)


def test_other_c_libraries_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))  # macOS and Windows
    monkeypatch.setattr(ctypes, "CDLL", lambda name: pytest.fail(f"loads {name}"))
    tune_malloc()


@pytest.mark.parametrize(
    ("trainer", "message"),
    [
        ({"accelerator": "tpu"}, "Expected a device for trainer.accelerator=tpu, but PyTorch"),
        ({"accelerator": "foo"}, "to be one of auto, gpu, cpu, cuda, mps, tpu, but got 'foo'."),
        ({"accelerator": "cpu", "devices": 0}, "but got 0: PyTorch finds"),
        ({"accelerator": "cpu", "devices": -1}, "but got -1: PyTorch finds"),
        ({"accelerator": "cpu", "devices": [0, 1]}, "but got [0, 1]: PyTorch finds"),
        ({"accelerator": "cpu", "devices": "abc"}, "but got 'abc': PyTorch finds"),
    ],
)
def test_missing_devices_are_refused(trainer: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        check_devices(trainer)


@pytest.mark.usefixtures("no_gpu")
def test_a_missing_gpu_is_refused() -> None:
    for accelerator in ("gpu", "cuda"):
        with pytest.raises(UserError, match=f"for trainer.accelerator={accelerator}, but PyTorch"):
            check_devices({"accelerator": accelerator})
    with pytest.raises(UserError, match=r"for data\.device=cuda, but PyTorch sees none"):
        check_devices({}, "cuda")


def test_available_devices_are_counted() -> None:
    for devices, number in (("auto", 1), (1, 1), (3, 3), ("2", 2)):
        trainer = {"accelerator": "cpu", "devices": devices}
        check_devices(trainer)
        assert num_devices(trainer) == number


def test_precision_decides_on_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_tf32_supported", lambda: True)
    assert choose_precision("tf32", "cuda") == ("32-true", "")
    monkeypatch.setattr(torch.cuda, "is_tf32_supported", lambda: False)
    for accelerator in ("cuda", "cpu"):
        precision, notice = choose_precision("tf32", accelerator)
        assert (precision, "does not support TF32" in notice) == ("32-true", True)
    with kernels_restored():
        for precision, products, convolutions in (
            ("tf32", "high", True),
            ("32-true", "highest", False),
            ("bf16-mixed", "highest", False),  # left as it was
        ):
            set_tf32(precision, "cuda")
            assert torch.get_float32_matmul_precision() == products
            assert torch.backends.cudnn.allow_tf32 == convolutions
        set_tf32("tf32", "cpu")
        assert torch.get_float32_matmul_precision() == "highest"


def test_only_cuda_chooses_kernels_by_timing() -> None:
    trainer = {"benchmark": True, "compile": "reduce-overhead"}
    assert timing_dependent_settings(trainer, "cuda") == ["trainer.benchmark", "trainer.compile"]
    assert timing_dependent_settings({"benchmark": False, "compile": False}, "cuda") == []
    assert timing_dependent_settings(trainer, "cpu") == []


@pytest.mark.parametrize(
    ("overrides", "fits"),
    [
        ([], True),
        (["experiment=report_a"], True),
        (["model.network.widths=[100000,100000,100000]"], False),
        (["data.image_size=4096", "data.eval_batch_size=100000"], False),
        (["data=synthetic", "data.num_train=10000000"], False),
    ],
)
def test_sizes_that_cannot_fit_into_memory_are_refused(
    overrides: list[str], fits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fashion_lit.training.device.total_memory", lambda trainer: 30 * 2**30)
    (config,) = compose_jobs(prepare_overrides(overrides), multirun=False)
    if fits:
        check_memory(config)
    else:
        with pytest.raises(UserError, match=r"fit into the 30\.0 GiB of memory, but they need"):
            check_memory(config)
