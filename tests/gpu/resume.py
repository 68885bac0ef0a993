"""The stages that kill a run in its second epoch and let it go on: is it equal to the bit?"""

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

SMALL_KILL_AT = 15  # the step in miniature, where an epoch has 11


def resume_stage(
    mode: str,
    *overrides: str,
    kill_at: int,
    small: Sequence[str] = (TINY,),
    exact: bool = True,
) -> Work:
    """Return a stage of two runs alike, and of one that is killed and goes on.

    Args:
        mode: its runs' names begin so.
        overrides: of all three runs.
        kill_at: a step of the second epoch.
        small: more overrides in miniature.
        exact: they must be equal to the bit; if not, that is told all the same.
    """

    def stage(turn: Turn) -> Outcome:
        saves = f"checkpoint.every_steps={4 if turn.check.small else 25}"
        settings = ["trainer.max_epochs=2", saves, *QUIET, *overrides, *turn.in_small(*small)]
        step = SMALL_KILL_AT if turn.check.small else kill_at
        figures = run_three(turn, mode, settings, step)
        code = figures["killed_code"]
        was_killed = code == -signal.SIGKILL
        said = [f"killed at step {figures['killed_at_step']}"]
        if not was_killed:
            said = [f"NOT killed ({code})"]
        for name in ("again", "resumed"):
            said.append(f"{name}: {in_words(figures[f'whole and {name}'])}")
        equal = figures["whole and resumed"].get("equal", False)
        well = was_killed and figures["resumed"]["exit"] == 0 and (equal or not exact)
        return Outcome(well, "; ".join(said), figures)

    return stage


def run_three(turn: Turn, mode: str, settings: Sequence[str], step: int) -> Figures:
    """Train the three runs at once, the third one killed at a step; compare what they come to."""
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
    """Kill a run once its status tells of this step; returns the step that it told last."""
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
    """Say what a comparison has found."""
    if "failed" in found:
        return found["failed"][:100]
    if found["equal"]:
        return "equal to the bit"
    return (
        f"{found['unequal']} of {found['tensors']} tensors differ, by up to "
        f"{found['greatest_gap']:.1e}"
    )
