"""Type settings at random, valid and not: a run trains or refuses in a few lines.

    python tests/end_to_end/settings_fuzz.py --seed 0 --draws 1000

A draw is a small run with one batch of each split and one to three overrides: a real key, sometimes
misspelt, with a value of a wrong type, an extreme one, odd text, an interpolation, a list, or a
deletion. A traceback, a hang, another exit code than 0, 1 and 2, or an error of over five lines is
a fault. Processes are forked after the imports; Linux and macOS only.
"""

# ruff: noqa: SIM905

import argparse
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.strategies.launchers.subprocess_script import _SubprocessScriptLauncher

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from forked import HUNG, Life, live, report  # noqa: E402

from fashion_lit import __main__ as command_line  # noqa: E402
from fashion_lit.commands.train import main as train  # noqa: E402
from fashion_lit.config.compose import compose_jobs  # noqa: E402
from fashion_lit.config.groups import CONF_DIR  # noqa: E402
from fashion_lit.config.schema import (  # noqa: E402
    OPTIMIZERS,
    SCHEDULERS,
    keyword_fields,
)
from fashion_lit.config.settings import leaves  # noqa: E402
from fashion_lit.config.trainer import OWN_TRAINER_KEYS, TrainerSettings  # noqa: E402

BASE = [
    "data=synthetic",
    "data.num_train=60",
    "data.num_test=20",
    "data.val_size=20",
    "data.batch_size=10",
    "data.eval_batch_size=10",
    "model.network.widths=[4,4,4]",
    "debug=one_batch",
    "precision=fp32",
    "trainer.accelerator=cpu",
    "tensorboard.pictures=false",
]
NUMBERS = """0 1 2 3 7 -1 -2 0.0 -0.0 0.5 -0.5 0.999 1.0 1.5 2.0 28 32 64 1e-8 1e-300 1e300 -1e300
1e309 2147483648 4294967295 4294967296 9223372036854775807 9223372036854775808 .inf -.inf .nan 0x10
0o17 1_000 1e5""".split()
NUMBERS += ["1" * 40, "9" * 5000]
TEXTS = r"""abc auto null true false True yes no none None cpu cuda max min ? ??? * ~ . .. / \ ü
日本 😀 %20 % '' a/b ../x $HOME '#' '1' 'true' a:b 00:00:01:00 1:2 a@b '[1' "a=b" simple ddp
""".split()
TEXTS += ["' '", "'a b'", "'a\nb'", "'\x1b[31m'", "x" * 300, "'\t'", "\udcff", "", "'a\x00b'"]
COLLECTIONS = """[] [1] [1,2] [0,0] [1,2,3,4,5,6,7,8,9,10] [a] [null] [[1]] [true] {} {a:1}
{a:{b:1}} {seconds:5} {seconds:0} {days:99999999} [1, {a [0.5,0.9] [0,1,1,1,1,1,1,1,1,1]""".split()
COLLECTIONS += ["[" + ",".join(["1"] * 300) + "]"]
INTERPOLATIONS = r"""${seed} ${nothing} ${data} ${run_dir} ${trainer.max_epochs} ${trainer} ${ ${}
${now:%Y} ${oc.env:HOME} ${oc.env:NOPE} ${oc.env:NOPE,1} ${hydra:runtime.cwd} ${hydra:nope} ${a:b}
${oc.decode:'['} \${seed} ${optimizer.lr} ${.} ${..seed}""".split()
SWEEPS = ["1,2", "a,b", "range(3)", "range(0)", "interval(0,1)", "choice(1,2)", "glob(*)"]
CASTS = ["int(3.5)", "float(x)", "str(1)", "bool(no)", "shuffle(1,2)", "sort(2,1)", "tag(a,1,2)"]
POOLS = (NUMBERS, NUMBERS, TEXTS, COLLECTIONS, INTERPOLATIONS, SWEEPS, CASTS)
GROUPS = (
    *("model", "augment", "optimizer", "scheduler", "precision", "experiment", "debug", "data"),
    "launcher",
)
MAX_LINES = 5
MAX_BYTES = 6 << 30  # of memory, for one draw
LIMIT = 60  # seconds of one draw
STOP_AFTER = 20  # seconds, after which a draw is asked to stop: it may have many epochs to train


def all_keys() -> dict[str, Any]:
    """Return {dotted key: default} of all settings: the defaults', and those of every choice."""
    (config,) = compose_jobs(BASE, multirun=False)
    parts = {"optimizer": OPTIMIZERS, "scheduler": SCHEDULERS}
    found: dict[str, Any] = {
        f"{group}.{key}": default
        for group, kinds in parts.items()
        for kind in kinds.values()
        for key, (_, default) in keyword_fields(kind).items()
    }
    for key, field in TrainerSettings.model_fields.items():
        found[f"trainer.{key}"] = field.default
    found |= dict.fromkeys(f"trainer.{key}" for key in OWN_TRAINER_KEYS)
    found |= dict.fromkeys(
        "model.weights model.backbone model.freeze_backbone model.network model trainer data "
        "data.root data.mirrors augment hydra hydra.run.dir".split()
    )
    return found | leaves(config)


def near(value: Any, draw: random.Random) -> str:
    """Return a value of the same kind as a setting's default, which may be valid."""
    if isinstance(value, bool):
        return draw.choice(["true", "false"])
    if isinstance(value, int | float):
        return str(draw.choice([value, value * 2, value / 2, value + 1, value - 1, -value, 0, 1]))
    return draw.choice(["null", "true", "1", "2", "5", "0.5", "0.9", "1.0", "auto", "00:00:00:05"])


def misspell(key: str, draw: random.Random) -> str:
    """Return a key with one of the slips that people make."""
    place = draw.randrange(len(key))
    slips = [key[:place] + key[place + 1 :], key.upper(), f"{key}.x", key.rpartition(".")[2]]
    return draw.choice(
        [*slips, f"{key}[0]", key.replace(".", "/"), f"{key}s", f"+{key}", f"x.{key}"]
    )


def draw_override(settings: dict[str, Any], draw: random.Random) -> str:
    """Return one override."""
    kind = draw.random()
    if kind < 0.1:
        group = draw.choice(GROUPS)
        names = [path.stem for path in (CONF_DIR / group).glob("*.yaml")]
        return f"{group}={draw.choice([*names, 'nope', 'null', '[a,b]'])}"
    key = draw.choice(list(settings))
    if kind < 0.5:
        return f"{key}={near(settings[key], draw)}"
    if kind < 0.6:
        key = misspell(key, draw)
    if kind < 0.65:
        return f"~{key}" if draw.random() < 0.7 else f"~{key}={draw.choice(NUMBERS)}"
    if kind < 0.68:
        return draw.choice([key, f"{key}==1", f"={key}", f"{key}=1=2", f"{key} =1", f"{key}@a=1"])
    return f"{draw.choice(['', '', '', '+', '++'])}{key}={draw.choice(draw.choice(POOLS))}"


def is_excluded(override: str) -> bool:
    """Return whether an override would use the real data, or start a cluster's jobs."""
    return override in ("data=fashion_mnist", "launcher=slurm")


def judge(life: Life) -> str:
    """Return how a draw ended; a fault's name begins with FAULT."""
    if life.code == HUNG:
        return "FAULT: hangs"
    if life.code == 128 + signal.SIGTERM:
        return "stopped"
    if life.code not in (0, 1, 2):
        return f"FAULT: exit {life.code}"
    if "Traceback" in life.text:
        return "FAULT: traceback"
    lines = [line for line in life.text.splitlines() if line.strip()]
    if life.code == 2 and len(lines) > MAX_LINES:
        return f"FAULT: {len(lines)} lines"
    if life.code == 2 and max(map(len, lines), default=0) > 1200:
        return "FAULT: a line of over 1,200 characters"
    return ("trained", "failed", "refused")[life.code]


def prepare_child(folder: Path) -> None:
    """Bound a draw's memory, and keep it in its folder and in one process."""
    os.chdir(folder)
    os.environ["HOME"] = str(folder)
    resource.setrlimit(resource.RLIMIT_DATA, (MAX_BYTES, MAX_BYTES))

    def start_no_processes(self: Any, *_: Any) -> None:
        processes = self.cluster_environment.world_size()
        print(f"would start {processes} processes")
        os._exit(0 if processes <= 64 else 3)

    _SubprocessScriptLauncher._call_children_scripts = start_no_processes


def fuzz(seed: int, draws: int, root: Path) -> Counter[str]:
    """Draw, run and judge; print each fault; returns how many draws ended how."""
    draw = random.Random(seed)
    settings = all_keys()
    counts: Counter[str] = Counter()
    for number in range(draws):
        overrides = [draw_override(settings, draw) for _ in range(draw.choice([1, 1, 2, 3]))]
        if any(map(is_excluded, overrides)):
            continue
        folder = root / str(number) / "a" / "b"
        folder.mkdir(parents=True)

        def action(folder: Path = folder, overrides: list[str] = overrides) -> int:
            prepare_child(folder)
            command_line.make_output_robust()
            return train([*BASE, *overrides])

        life = live(action, root / "log", seconds=LIMIT, stop_after=STOP_AFTER)
        outcome = judge(life)
        counts[outcome] += 1
        if outcome.startswith("FAULT"):
            typed = [text if len(text) < 200 else f"{text[:60]}…" for text in overrides]
            print(f"--- seed {seed}, draw {number}: {outcome}: {typed}")
            print("\n".join(line[:300] for line in life.text.splitlines()[-12:]), flush=True)
        shutil.rmtree(root / str(number), ignore_errors=True)
    return counts


def main() -> int:
    """Fuzz, print the counts; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--draws", type=int, default=1000)
    args = parser.parse_args()
    torch.set_num_threads(1)
    assert threading.active_count() == 1, "a fork copies no threads"
    with tempfile.TemporaryDirectory() as folder:
        counts = fuzz(args.seed, args.draws, Path(folder))
    return report(counts)


if __name__ == "__main__":
    sys.exit(main())
