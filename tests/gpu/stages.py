"""The stages that train whole runs or measure: does it work on this machine, and how fast?"""

import json
import statistics
from collections.abc import Callable, Sequence

from commands import FASHION_LIT, TRAIN, Turn
from results import Figures, Outcome
from runs import QUIET, SMALL_DATA, TINY, in_short, place, train

Work = Callable[[Turn], Outcome]  # what a stage does

SMALL_BENCHMARK = (  # settings of the benchmark's runs in miniature
    "data.num_train=90",
    "data.num_test=30",
    "data.val_size=30",
    "data.batch_size=20",
)


def env(turn: Turn) -> Outcome:
    """What machine this is, and whether the project runs there."""
    told = turn.probe("environment")
    version = turn.run([*FASHION_LIT, "--version"])
    composed = turn.run([*TRAIN, "--cfg", "job"])
    told |= {"fashion_lit": version.out.strip(), "composes": composed.ok or composed.last_words}
    torch = told.get("versions", {}).get("torch")
    line = f"{told.get('gpu', 'no GPU')}, torch {torch}, python {told.get('python')}"
    for key in ("copy TB/s", "bf16 TFLOP/s"):
        line += f", {told[key]:.2f} {key}" if key in told else ""
    trouble = [told["failed"]] if "failed" in told else []
    if not composed.ok:
        trouble.append(composed.last_words)
    return Outcome(not trouble, "; ".join(trouble) or line, told)


def default(turn: Turn) -> Outcome:
    """The run of `fashion-lit train`, whole."""
    told = train(turn, "default", *turn.in_small("trainer.max_epochs=2", TINY))
    return Outcome(told["exit"] == 0, in_short(told), told)


def fp16(turn: Turn) -> Outcome:
    """Two epochs in fp16, and one whose gradients are clipped, which excludes fused optimizers."""
    settings = ["precision=fp16", *QUIET, *turn.in_small(TINY)]
    told = train(turn, "fp16", "trainer.max_epochs=2", *settings)
    clip = ["trainer.gradient_clip_val=1", "trainer.max_epochs=1"]
    clipped = train(turn, "fp16_clipped", *clip, *settings)
    line = f"{in_short(told)}; clipped: {in_short(clipped)}"
    figures = {"fused": told, "clipped, not fused": clipped}
    return Outcome(told["exit"] == 0 == clipped["exit"], line, figures)


def report_b(turn: Turn) -> Outcome:
    """Report B's run, whole."""
    more = turn.in_small("trainer.max_epochs=2")
    told = train(turn, "report_b", "experiment=report_b", *more)
    return Outcome(told["exit"] == 0, in_short(told), told)


def report_a(turn: Turn) -> Outcome:
    """One epoch at 224 pixels; twenty would take twenty times as long."""
    figures: Figures = {}
    lines, well = [], True
    tiny = ["data.image_size=32", "trainer.limit_train_batches=4", "trainer.limit_val_batches=2"]
    settings = ["experiment=report_a", "model.pretrained=false", "trainer.max_epochs=1", *QUIET]
    settings += turn.in_small(*tiny)
    for precision in ("fp32", "auto"):
        told = train(turn, f"report_a_{precision}", f"precision={precision}", *settings)
        line = f"{precision}: {in_short(told)}"
        if told["epochs"]:
            seconds = told["20 epochs would take s"] = 20 * told["epochs"][0]["seconds"]
            line += f"; 20 epochs {seconds:,.0f} s"
        figures[precision] = told
        lines.append(line)
        well &= told["exit"] == 0
    return Outcome(well, " | ".join(lines), figures)


def waits(turn: Turn) -> Outcome:
    """Where a run waits for the device."""
    steps = 20 if turn.check.small else 200
    settings = [f"trainer.limit_train_batches={steps}", "trainer.max_epochs=1", "test=false"]
    small = turn.in_small(*SMALL_DATA, TINY)
    run_dir = f"run_dir={place(turn, 'waits').as_posix()}"
    told = turn.probe("waits", run_dir, *small, *settings)
    if "failed" in told:
        return Outcome(False, told["failed"], told)
    often = [f"{where} x{count}" for where, count in list(told["places"].items())[:4]]
    line = f"{told['total']} in {steps} steps and a validation: {'; '.join(often)}"
    return Outcome(told["exit"] == 0, line, told)


def anatomy(turn: Turn) -> Outcome:
    """What a bare step of the default model and of report B's consists of."""
    figures, lines, well = {}, [], True
    report = ["experiment=report_b", "precision=auto"]
    for name, settings in (("default", turn.in_small(TINY)), ("report_b", report)):
        small = turn.in_small(*SMALL_DATA)
        told = turn.probe(*turn.in_small("--small"), "anatomy", *settings, *small)
        figures[name] = told
        if "failed" in told:
            well = False
            lines.append(f"{name}: {told['failed'][:120]}")
            continue
        line = f"{name}: step {told['bare step ms']:.2f} ms, {told['operations a step']} operations"
        if "kernels a step" in told:
            busy, kernels = told["GPU busy ms a step"], told["kernels a step"]
            line += f", GPU busy {busy:.2f} ms, {kernels:.0f} kernels"
        lines.append(line)
    return Outcome(well, "; ".join(lines), figures)


def compile_stage(name: str, mode: str, *overrides: str, small: Sequence[str] = ()) -> Work:
    """Return a stage of a few compiled epochs, to set beside the eager run of another stage.

    The first epoch's additional seconds are what compiling takes. `small` are more overrides in
    miniature.
    """

    def stage(turn: Turn) -> Outcome:
        label = f"compiled_{name}_{mode}"
        epochs = f"trainer.max_epochs={2 if turn.check.small else 3}"
        settings = [f"trainer.compile={mode}", epochs, *QUIET, *overrides]
        told = train(turn, label, *settings, *turn.in_small(*small))
        line = in_short(told)
        seconds = [epoch["seconds"] for epoch in told["epochs"]]
        if len(seconds) > 1:
            told["compiling_s"] = seconds[0] - seconds[-1]
            line += f"; first epoch {told['compiling_s']:.1f} s longer"
        return Outcome(told["exit"] == 0, line, told)

    return stage


def benchmark_stage(part: str) -> Work:
    """Return a stage of one part of `fashion-lit benchmark`, in one short round."""

    def stage(turn: Turn) -> Outcome:
        output = turn.check.work / f"benchmark_{part}.json"
        effort = ["--rounds", "1", "--seconds", "0.7", "--steps", "20"]
        if turn.check.small:
            effort = ["--data", "synthetic", "--rounds", "1", "--seconds", "0.02", "--steps", "1"]
            effort += [word for setting in SMALL_BENCHMARK for word in ("--set", setting)]
        done = turn.run([*FASHION_LIT, "benchmark", part, *effort, "--output", str(output)])
        if not output.is_file():
            lines = [line.strip() for line in done.out.splitlines()]
            shown = [line for line in lines if line.startswith(f"{part}: ")]
            line = f"exit {done.code}: {done.last_words[:120]}"
            return Outcome(False, line, {"rows": shown})
        rows = json.loads(output.read_text(encoding="utf-8"))["rows"]
        turn.check.results.add_benchmark(part, rows)
        line = "; ".join(
            describe_row(row) for row in rows if "ours without" not in row["peer_name"]
        )
        return Outcome(done.ok, line, {"rows": rows, "wall_s": round(done.seconds, 1)})

    return stage


def describe_row(row: Figures) -> str:
    """Say what a row of the benchmark has measured, and how many times the peer's speed it is."""
    line = f"{row['what']}: {statistics.median(row['ours']):,.1f} {row['unit']}"
    return line + (f" (x {row['ratio']:.2f})" if row["ratio"] else "")
