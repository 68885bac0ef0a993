"""Walk through faults at random: kill a run, damage one of its files, resume it, compare.

    python tests/end_to_end/fault_walk.py --seed 0 --rounds 100

A round starts a run, stops it by a signal at a random place, damages at most one file of its
directory, and runs the same command until the run ends. The result must equal that of the
uninterrupted run bit for bit, or the command must refuse with one sentence that names the file.
Processes are forked after the imports, so a round takes seconds; Linux and macOS only.
"""

import argparse
import random
import shutil
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from forked import Life, live, report  # noqa: E402
from killed_train import stop_at  # noqa: E402
from test_kills import SETTINGS, STEPS, assert_same_result  # noqa: E402

from fashion_lit.commands.train import main as train  # noqa: E402
from fashion_lit.runs.directory import RunDirectory  # noqa: E402

TINY = ["model=fast_cnn", "model.network.widths=[4,4,4]", "tensorboard.pictures=false"]
RECIPES = {
    "cnn": ["precision=bf16", "scheduler=one_cycle"],
    "accumulated": [
        "precision=fp32",
        "trainer.accumulate_grad_batches=2",
        "trainer.val_check_interval=5",
        "data.eval_batch_size=20",
        "test=false",
    ],
    "plateau": ["precision=fp32", "scheduler=plateau", "scheduler.patience=0"],
    "quarter": ["precision=fp32", "trainer.val_check_interval=0.25", "model.ema_decay=null"],
    "stopping": ["precision=fp32", "early_stopping.patience=1", "scheduler=constant"],
}
# Where a signal arrives, and at most how often the run gets there.
PLACES = {"step": STEPS * 3, "validation": 20, "save": 8, "rename": 6, "epoch": 3, "test": 4}
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP)
DAMAGES = ("none", "truncate", "flip", "delete", "replace", "empty")
LIMIT = 120  # seconds of one process
REFUSED = 2


def run_until(settings: Sequence[str], place: str, number: int, what: int, log: Path) -> Life:
    """Run `fashion-lit train` in a forked process, which gets signal `what` at a place."""

    def action() -> int:
        stop_at(place, number, what)
        return train(list(settings))

    return live(action, log, seconds=LIMIT)


def damage(run: Path, kind: str, draw: random.Random) -> Path | None:
    """Damage one file of a run's directory; returns it, None if nothing was damaged."""
    files = sorted(p for p in run.rglob("*") if p.is_file() and p.name != ".lock")
    if kind == "none" or not files:
        return None
    path = draw.choice(files)
    content = bytearray(path.read_bytes())
    if kind == "delete":
        path.unlink()
    elif kind == "empty" or not content:
        path.write_bytes(b"")
    elif kind == "truncate":
        path.write_bytes(content[: draw.randrange(len(content))])
    elif kind == "replace":
        path.write_bytes(draw.randbytes(len(content)))
    else:
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        path.write_bytes(content)
    return path


def walk(seed: int, rounds: int, root: Path) -> Counter[str]:
    """Do some rounds, print the story of each fault; returns how many rounds ended how."""
    draw = random.Random(seed)
    references: dict[str, RunDirectory] = {}
    counts: Counter[str] = Counter()
    for number in range(rounds):
        name = draw.choice(list(RECIPES))
        settings = [*SETTINGS, *TINY, *RECIPES[name]]
        if name not in references:
            references[name] = RunDirectory(root / f"whole_{name}")
            place = f"run_dir={references[name].path.as_posix()}"
            life = run_until([*settings, place], "never", 0, 0, root / "log")
            assert life.code == 0, life.text
        run = RunDirectory(root / f"round_{number}")
        command = [*settings, f"run_dir={run.path.as_posix()}"]
        place = draw.choice(list(PLACES))
        arrival, what = draw.randint(1, PLACES[place]), draw.choice(SIGNALS)
        kind = draw.choice(DAMAGES)
        first = run_until(command, place, arrival, what, root / "log")
        path = damage(run.path, kind, draw)
        story = f"seed {seed}, round {number}: {name}, {signal.Signals(what).name} at {place} "
        story += f"{arrival} (exit {first.code}), {kind} {path and path.name}"
        life = run_until(command, "never", 0, 0, root / "log")
        try:
            outcome = judge(life, run, references[name], path)
        except Exception as fault:
            outcome = "FAULT"
            print(f"{story}: {type(fault).__name__}: {fault}\n{life.text}", flush=True)
        counts[f"{kind if path else 'none'}: {outcome}"] += 1
        shutil.rmtree(run.path, ignore_errors=True)
    return counts


def judge(life: Life, run: RunDirectory, reference: RunDirectory, path: Path | None) -> str:
    """Return how a round ended; raises AssertionError for a fault."""
    if life.code == 0 and not run.last_checkpoint.exists():  # a finished run does not need it
        assert path == run.last_checkpoint and path.name in life.text
        return "named"
    if life.code == 0:
        assert_same_result(run, reference)
        return "equal"
    is_named = path is not None and path.name in life.text
    assert life.code == REFUSED and is_named and "Traceback" not in life.text, f"exit {life.code}"
    return "refused"


def main() -> int:
    """Walk, print the counts; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=100)
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        counts = walk(args.seed, args.rounds, Path(folder))
    return report(counts)


if __name__ == "__main__":
    sys.exit(main())
