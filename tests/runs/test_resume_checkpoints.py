"""When ranks ask each other whether to stop or to save."""

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


class Points(ResumeCheckpoints):
    """Notes what it would save."""

    def __init__(self, tmp_path: Path, **settings: Any) -> None:
        self.saved: list[tuple[int, bool]] = []
        super().__init__(
            tmp_path / "last.ckpt",
            config={},
            signals=StopSignals(),
            record={},
            on_save=lambda progress: None,
            **{"every_minutes": 5.0, "every_steps": None} | settings,
        )

    def _save(self, trainer: Any, *, stop: bool) -> None:
        self.saved.append((trainer.global_step, stop))
        self._saved_step = trainer.global_step
        if stop:
            raise Stopped(2)


@pytest.fixture
def ranks(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """What ranks say to each other: the flags of another one, and how often they were asked."""
    other = SimpleNamespace(stop=False, due=False, asked=[], groups=0)

    def all_reduce(flags: torch.Tensor, operation: Any, group: Any) -> None:
        assert flags.device.type == "cpu"
        assert group == "gloo"
        other.asked.append(flags.tolist())
        flags.copy_(torch.maximum(flags, torch.tensor([other.stop, other.due], dtype=torch.uint8)))

    def new_group(backend: str) -> str:
        other.groups += 1
        return backend

    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
    monkeypatch.setattr(torch.distributed, "new_group", new_group)
    monkeypatch.setattr(resume_checkpoints, "_datamodule", lambda trainer: SimpleNamespace())
    return other


def train(points: Points, batches: range, *, accumulated: int = 1) -> None:
    trainer: Any = SimpleNamespace(
        world_size=2, current_epoch=0, accumulate_grad_batches=accumulated, global_step=0
    )
    for batch in batches:
        trainer.global_step = batch // accumulated
        points.on_train_batch_start(trainer, None, None, batch)  # type: ignore[arg-type]


def test_ranks_ask_once_in_some_steps(ranks: SimpleNamespace, tmp_path: Path) -> None:
    train(Points(tmp_path), range(4 * AGREE_EVERY_STEPS))
    assert ranks.asked == [[0, 0]] * 4
    assert ranks.groups == 1
    ranks.asked.clear()
    train(Points(tmp_path), range(4 * AGREE_EVERY_STEPS * 3), accumulated=3)
    assert len(ranks.asked) == 4


def test_one_rank_is_asked_to_stop_and_all_do(ranks: SimpleNamespace, tmp_path: Path) -> None:
    points, ranks.stop = Points(tmp_path), True
    with pytest.raises(Stopped):
        train(points, range(1, 20))
    assert points.saved == [(AGREE_EVERY_STEPS, True)]


def test_steps_need_no_question(ranks: SimpleNamespace, tmp_path: Path) -> None:
    points = Points(tmp_path, every_steps=2)
    train(points, range(1, AGREE_EVERY_STEPS))
    assert points.saved == [(1, False), (3, False)]
    assert not ranks.asked


def test_one_ranks_clock_saves_for_all(ranks: SimpleNamespace, tmp_path: Path) -> None:
    points, ranks.due = Points(tmp_path), True
    train(points, range(1, AGREE_EVERY_STEPS + 2))
    assert points.saved == [(AGREE_EVERY_STEPS, False)]


def test_validations_are_stopped_too(ranks: SimpleNamespace, tmp_path: Path) -> None:
    points, ranks.stop = Points(tmp_path), True
    trainer: Any = SimpleNamespace(
        world_size=2, state=SimpleNamespace(fn=TrainerFn.FITTING), global_step=3
    )
    with pytest.raises(Stopped):
        points.on_validation_batch_start(trainer, None, None, 0)  # type: ignore[arg-type]
    assert points.saved == [(3, True)]


SCRIPT = """
import sys
from collections import Counter
import torch
from fashion_lit.train import main

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
    told = [line.split(maxsplit=2) for line in done.stdout.splitlines() if "COLLECTIVES" in line]
    assert len(told) == 2
    num_steps = 1000 // 2 // 20
    for _, number, calls in told:
        assert int(number) <= -(-num_steps // AGREE_EVERY_STEPS), calls
