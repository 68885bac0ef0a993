"""The stages that train whole runs or measure speed."""

import json
import statistics
from collections.abc import Callable, Sequence

from commands import FASHION_LIT, TRAIN, Turn
from results import Figures, Outcome
from runs import QUIET, SMALL_DATA, TINY, in_short, place, train

Work = Callable[[Turn], Outcome]  # the type of a stage's function

SMALL_BENCHMARK = (  # overrides of the benchmark's runs with --small
    "data.num_train=90",
    "data.num_test=30",
    "data.val_size=30",
    "data.batch_size=20",
)


def env(turn: Turn) -> Outcome:
    """Describe the machine, and check that the project can be imported and configured there."""
    figures = turn.probe("environment")
    version = turn.run([*FASHION_LIT, "--version"])
    composed = turn.run([*TRAIN, "--cfg", "job"])
    figures |= {"fashion_lit": version.out.strip(), "composes": composed.ok or composed.last_words}
    torch = figures.get("versions", {}).get("torch")
    line = f"{figures.get('gpu', 'no GPU')}, torch {torch}, python {figures.get('python')}"
    for key in ("copy TB/s", "bf16 TFLOP/s"):
        line += f", {figures[key]:.2f} {key}" if key in figures else ""
    errors = [figures["failed"]] if "failed" in figures else []
    if not composed.ok:
        errors.append(composed.last_words)
    return Outcome(not errors, "; ".join(errors) or line, figures)


def default(turn: Turn) -> Outcome:
    """Train the default recipe to its end."""
    figures = train(turn, "default", *turn.in_small("trainer.max_epochs=2", TINY))
    return Outcome(figures["exit"] == 0, in_short(figures), figures)


def fp16(turn: Turn) -> Outcome:
    """Train two epochs in fp16, and one with clipping, which excludes fused optimizers."""
    settings = ["precision=fp16", *QUIET, *turn.in_small(TINY)]
    fused = train(turn, "fp16", "trainer.max_epochs=2", *settings)
    clip = ["trainer.gradient_clip_val=1", "trainer.max_epochs=1"]
    clipped = train(turn, "fp16_clipped", *clip, *settings)
    line = f"{in_short(fused)}; clipped: {in_short(clipped)}"
    figures = {"fused": fused, "clipped, not fused": clipped}
    return Outcome(fused["exit"] == 0 == clipped["exit"], line, figures)


def report_b(turn: Turn) -> Outcome:
    """Train report B's recipe to its end."""
    more = turn.in_small("trainer.max_epochs=2")
    figures = train(turn, "report_b", "experiment=report_b", *more)
    return Outcome(figures["exit"] == 0, in_short(figures), figures)


def report_a(turn: Turn) -> Outcome:
    """Train one epoch of report A's recipe in fp32 and in auto; extrapolate to its 20 epochs."""
    figures: Figures = {}
    lines, well = [], True
    tiny = ["data.image_size=32", "trainer.limit_train_batches=4", "trainer.limit_val_batches=2"]
    settings = ["experiment=report_a", "model.pretrained=false", "trainer.max_epochs=1", *QUIET]
    settings += turn.in_small(*tiny)
    for precision in ("fp32", "auto"):
        run = train(turn, f"report_a_{precision}", f"precision={precision}", *settings)
        line = f"{precision}: {in_short(run)}"
        if run["epochs"]:
            seconds = run["20 epochs would take s"] = 20 * run["epochs"][0]["seconds"]
            line += f"; 20 epochs {seconds:,.0f} s"
        figures[precision] = run
        lines.append(line)
        well &= run["exit"] == 0
    return Outcome(well, " | ".join(lines), figures)


def waits(turn: Turn) -> Outcome:
    """Count the lines of code at which a run waits for the device."""
    steps = 20 if turn.check.small else 200
    settings = [f"trainer.limit_train_batches={steps}", "trainer.max_epochs=1", "test=false"]
    small = turn.in_small(*SMALL_DATA, TINY)
    run_dir = f"run_dir={place(turn, 'waits').as_posix()}"
    figures = turn.probe("waits", run_dir, *small, *settings)
    if "failed" in figures:
        return Outcome(False, figures["failed"], figures)
    often = [f"{where} x{count}" for where, count in list(figures["places"].items())[:4]]
    line = f"{figures['total']} in {steps} steps and a validation: {'; '.join(often)}"
    return Outcome(figures["exit"] == 0, line, figures)


def anatomy(turn: Turn) -> Outcome:
    """Measure the parts of a bare training step of the default model and of report B's."""
    figures, lines, well = {}, [], True
    report = ["experiment=report_b", "precision=auto"]
    for name, settings in (("default", turn.in_small(TINY)), ("report_b", report)):
        small = turn.in_small(*SMALL_DATA)
        found = turn.probe(*turn.in_small("--small"), "anatomy", *settings, *small)
        figures[name] = found
        if "failed" in found:
            well = False
            lines.append(f"{name}: {found['failed'][:120]}")
            continue
        step, operations = found["bare step ms"], found["operations a step"]
        line = f"{name}: step {step:.2f} ms, {operations} operations"
        if "kernels a step" in found:
            busy, kernels = found["GPU busy ms a step"], found["kernels a step"]
            line += f", GPU busy {busy:.2f} ms, {kernels:.0f} kernels"
        lines.append(line)
    return Outcome(well, "; ".join(lines), figures)


def compile_stage(name: str, mode: str, *overrides: str, small: Sequence[str] = ()) -> Work:
    """Return a stage that trains a few compiled epochs, to compare with another stage's eager run.

    The compile time is the first epoch's duration minus the last one's. `small` are additional
    overrides with --small.
    """

    def stage(turn: Turn) -> Outcome:
        label = f"compiled_{name}_{mode}"
        epochs = f"trainer.max_epochs={2 if turn.check.small else 3}"
        settings = [f"trainer.compile={mode}", epochs, *QUIET, *overrides]
        figures = train(turn, label, *settings, *turn.in_small(*small))
        line = in_short(figures)
        seconds = [epoch["seconds"] for epoch in figures["epochs"]]
        if len(seconds) > 1:
            figures["compiling_s"] = seconds[0] - seconds[-1]
            line += f"; first epoch {figures['compiling_s']:.1f} s longer"
        return Outcome(figures["exit"] == 0, line, figures)

    return stage


def benchmark_stage(part: str) -> Work:
    """Return a stage that runs one part of `fashion-lit benchmark`, in one short round."""

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
    """Summarize a row of the benchmark: its figure, and its speed relative to the peer's."""
    line = f"{row['what']}: {statistics.median(row['ours']):,.1f} {row['unit']}"
    return line + (f" (x {row['ratio']:.2f})" if row["ratio"] else "")
