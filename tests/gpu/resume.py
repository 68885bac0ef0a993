"""The stages that kill a run in its second epoch, resume it and compare it bit by bit."""

import signal
import time
from collections.abc import Sequence

from commands import Process, Turn
from results import Figures, Outcome
from runs import (
    QUIET,
    TINY,
    continue_command,
    describe,
    last_checkpoint,
    place,
    read_json,
    train_command,
)
from stages import Work

SMALL_KILL_AT = 15  # the step with --small, where an epoch has 11


def resume_stage(
    mode: str,
    *overrides: str,
    kill_at: int,
    small: Sequence[str] = (TINY,),
    exact: bool = True,
) -> Work:
    """Return a stage of three equal runs, one of which is killed and resumed.

    Args:
        mode: the prefix of the runs' names.
        overrides: overrides of all three runs.
        kill_at: the step of the kill, in the second epoch.
        small: additional overrides with --small.
        exact: fail unless the resumed run is bit-identical; otherwise only report differences.
    """

    def stage(turn: Turn) -> Outcome:
        saves = f"checkpoint.every_steps={4 if turn.check.small else 25}"
        settings = ["trainer.max_epochs=2", saves, *QUIET, *overrides, *turn.in_small(*small)]
        step = SMALL_KILL_AT if turn.check.small else kill_at
        figures = run_three(turn, mode, settings, step)
        code = figures["killed_code"]
        was_killed = code == -signal.SIGKILL
        lines = [f"killed at step {figures['killed_at_step']}"]
        if not was_killed:
            lines = [f"NOT killed ({code})"]
        for name in ("again", "resumed"):
            lines.append(f"{name}: {in_words(figures[f'whole and {name}'])}")
        equal = figures["whole and resumed"].get("equal", False)
        well = was_killed and figures["resumed"]["exit"] == 0 and (equal or not exact)
        return Outcome(well, "; ".join(lines), figures)

    return stage


def run_three(turn: Turn, mode: str, settings: Sequence[str], step: int) -> Figures:
    """Train three runs concurrently, kill and resume the third, and compare their checkpoints."""
    threads = {"OMP_NUM_THREADS": "1" if turn.check.small else "2"}
    whole, again, killed = (f"{mode}_{part}" for part in ("whole", "again", "killed"))
    processes = {
        name: turn.start(train_command(turn, name, *settings), threads)
        for name in (whole, again, killed)
    }
    step_reached = kill_at_step(turn, processes[killed], killed, step)
    code = processes[killed].wait(turn.seconds_left).code
    resumed = turn.run(continue_command(turn, killed), threads)
    done = {name: processes[name].wait(turn.seconds_left) for name in (whole, again)}
    return {
        "killed_at_step": step_reached,
        "killed_code": code,
        "resumed": describe(turn, killed, resumed),
        "whole": describe(turn, whole, done[whole]),
        "whole and again": compare(turn, whole, again),
        "whole and resumed": compare(turn, whole, killed),
    }


def kill_at_step(turn: Turn, process: Process, name: str, step: int) -> int:
    """Kill a run once its status.json reaches `step`; returns the last step read from there."""
    reached = 0
    while process.runs and turn.seconds_left > 0:
        reached = read_json(place(turn, name) / "status.json").get("step", 0)
        if reached >= step:
            process.kill()
            break
        time.sleep(0.01)
    return reached


def compare(turn: Turn, *names: str) -> Figures:
    """Compare the last checkpoints of two runs."""
    return turn.probe("compare", *(last_checkpoint(turn, name) for name in names))


def in_words(found: Figures) -> str:
    """Summarize a comparison."""
    if "failed" in found:
        return found["failed"][:100]
    if found["equal"]:
        return "bit-identical"
    return (
        f"{found['unequal']} of {found['tensors']} tensors differ, by up to "
        f"{found['greatest_gap']:.1e}"
    )
