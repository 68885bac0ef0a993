"""When the ranks agree on whether to stop or to save."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.trainer.states import TrainerFn

from fashion_lit.errors import Stopped
from fashion_lit.runs import resume_checkpoints
from fashion_lit.runs.resume_checkpoints import AGREE_EVERY_STEPS, ResumeCheckpoints
from fashion_lit.runs.signals import StopSignals


class RecordedSaves(ResumeCheckpoints):
    """Records (step, stop) of each save instead of writing a checkpoint."""

    def __init__(self, tmp_path: Path, **settings: Any) -> None:
        self.saved: list[tuple[int, bool]] = []
        super().__init__(
            tmp_path / "last.ckpt",
            config={},
            signals=StopSignals(),
            record={},
            on_save=lambda progress: None,
            has_lost_lock=lambda: False,
            **{"every_minutes": 5.0, "every_steps": None} | settings,
        )

    def _save(self, trainer: Any, *, stop: bool) -> None:
        self.saved.append((trainer.global_step, stop))
        self._saved_step = trainer.global_step
        if stop:
            raise Stopped(2)


@pytest.fixture
def ranks(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A second rank: the flags it contributes, and the all-reduces it took part in."""
    other = SimpleNamespace(stop=False, due=False, reduced=[], groups=0)

    def all_reduce(flags: torch.Tensor, operation: Any, group: Any) -> None:
        assert flags.device.type == "cpu"
        assert group == "gloo"
        other.reduced.append(flags.tolist())
        flags.copy_(torch.maximum(flags, torch.tensor([other.stop, other.due], dtype=torch.uint8)))

    def new_group(backend: str) -> str:
        other.groups += 1
        return backend

    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
    monkeypatch.setattr(torch.distributed, "new_group", new_group)
    monkeypatch.setattr(resume_checkpoints, "_datamodule", lambda trainer: SimpleNamespace())
    return other


def train(callback: RecordedSaves, batches: range, *, accumulated: int = 1) -> None:
    trainer: Any = SimpleNamespace(
        world_size=2, current_epoch=0, accumulate_grad_batches=accumulated, global_step=0
    )
    for batch in batches:
        trainer.global_step = batch // accumulated
        callback.on_train_batch_start(trainer, None, None, batch)  # type: ignore[arg-type]


def test_ranks_agree_every_few_steps(ranks: SimpleNamespace, tmp_path: Path) -> None:
    train(RecordedSaves(tmp_path), range(4 * AGREE_EVERY_STEPS))
    assert ranks.reduced == [[0, 0]] * 4
    assert ranks.groups == 1
    ranks.reduced.clear()
    train(RecordedSaves(tmp_path), range(4 * AGREE_EVERY_STEPS * 3), accumulated=3)
    assert len(ranks.reduced) == 4


def test_a_signal_to_one_rank_stops_all(ranks: SimpleNamespace, tmp_path: Path) -> None:
    callback, ranks.stop = RecordedSaves(tmp_path), True
    with pytest.raises(Stopped):
        train(callback, range(1, 20))
    assert callback.saved == [(AGREE_EVERY_STEPS, True)]


def test_saving_by_steps_needs_no_communication(ranks: SimpleNamespace, tmp_path: Path) -> None:
    callback = RecordedSaves(tmp_path, every_steps=2)
    train(callback, range(1, AGREE_EVERY_STEPS))
    assert callback.saved == [(1, False), (3, False)]
    assert not ranks.reduced


def test_one_ranks_timer_saves_on_all(ranks: SimpleNamespace, tmp_path: Path) -> None:
    callback, ranks.due = RecordedSaves(tmp_path), True
    train(callback, range(1, AGREE_EVERY_STEPS + 2))
    assert callback.saved == [(AGREE_EVERY_STEPS, False)]


def test_a_signal_stops_a_validation(ranks: SimpleNamespace, tmp_path: Path) -> None:
    callback, ranks.stop = RecordedSaves(tmp_path), True
    trainer: Any = SimpleNamespace(
        world_size=2, state=SimpleNamespace(fn=TrainerFn.FITTING), global_step=3
    )
    with pytest.raises(Stopped):
        callback.on_validation_batch_start(trainer, None, None, 0)  # type: ignore[arg-type]
    assert callback.saved == [(3, True)]


SCRIPT = """
import sys
from collections import Counter
import torch
from fashion_lit.commands.train import main

calls = Counter()
for name in ("all_reduce", "broadcast", "barrier", "all_gather", "reduce"):
    def count(*arguments, name=name, inner=getattr(torch.distributed, name), **keywords):
        in_a_step, frame = False, sys._getframe()
        while frame is not None and not in_a_step:
            place = frame.f_code.co_filename
            in_a_step = frame.f_code.co_name == "advance" and "training_epoch_loop" in place
            frame = frame.f_back
        calls[name] += in_a_step
        return inner(*arguments, **keywords)
    setattr(torch.distributed, name, count)
code = main(sys.argv[1:])
print("COLLECTIVES", sum(calls.values()), dict(calls))
sys.exit(code)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="gloo needs libuv's sockets on Windows")
def test_a_step_of_several_ranks_asks_nothing_else(tmp_path: Path, small: list[str]) -> None:
    script = tmp_path / "count.py"
    script.write_text(SCRIPT)
    ranks = ["trainer.devices=2", "trainer.strategy=ddp", f"output_root={tmp_path.as_posix()}"]
    steps = ["data.num_train=1100", "data.batch_size=20", "trainer.log_every_n_steps=1000"]
    command = [sys.executable, str(script), *small, *ranks, *steps]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    reports = [line.split(maxsplit=2) for line in done.stdout.splitlines() if "COLLECTIVES" in line]
    assert len(reports) == 2
    num_steps = 1000 // 2 // 20
    for _, number, calls in reports:
        assert int(number) <= -(-num_steps // AGREE_EVERY_STEPS), calls
