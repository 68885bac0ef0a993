"""The stage of `launcher=parallel`: two jobs at once on one GPU."""

import time
from pathlib import Path

import card
from commands import FASHION_LIT, TRAIN, Turn
from results import Outcome
from runs import SMALL_DATA, TINY, read_json


def parallel(turn: Turn) -> Outcome:
    """Train two jobs at once on one GPU, given by its UUID, if any."""
    uuids = card.uuids()
    environment = {"CUDA_VISIBLE_DEVICES": uuids[0]} if uuids else {}
    sweep = ["sweep_name=check", f"output_root={turn.check.work.as_posix()}"]
    sweep += ["launcher=parallel", "launcher.num_jobs=2"]
    jobs = ["optimizer.lr=0.1,0.2", "trainer.max_epochs=1", "tensorboard.pictures=false"]
    small = turn.in_small(*SMALL_DATA, TINY)
    process = turn.start([*TRAIN, "-m", *small, *jobs, *sweep], environment)
    on_gpu: set[int] = set()
    while process.runs and turn.seconds_left > 0:
        on_gpu |= card.processes()
        time.sleep(0.5)
    done = process.wait(turn.seconds_left)
    folder = turn.check.work / "sweeps" / "check"
    states = {path.parent.name: read_json(path)["state"] for path in folder.glob("*/status.json")}
    places = {path.stem: device_in(path) for path in folder.glob("*.log")}
    board = turn.run([*FASHION_LIT, "leaderboard", str(folder)])
    figures = {
        "exit": done.code,
        "wall_s": round(done.seconds, 1),
        "states": states,
        "on": places,
        "parent held the GPU": process.process.pid in on_gpu if on_gpu else None,
        "given": environment,
        "leaderboard": board.ok,
    }
    well = done.ok and board.ok and list(states.values()) == ["finished"] * 2
    line = f"{done.seconds:.1f} s, {states}, {sorted(set(places.values()))}"
    return Outcome(well, line, figures)


def device_in(log: Path) -> str:
    """Return the device named in a job's log, or "?"."""
    lines = log.read_text(encoding="utf-8").splitlines()
    devices = (
        line.partition(" parameters, on ")[2] for line in lines if " parameters, on " in line
    )
    return next(devices, "?")
