"""The stages that evaluate the default run and compare with the run's own metrics."""

from collections.abc import Mapping
from pathlib import Path

from commands import FASHION_LIT, WITHOUT_GPU, Done, Turn
from results import Figures, Outcome
from runs import place, read_json


def evaluate(turn: Turn) -> Outcome:
    """Evaluate it on the device that trained it, plainly and with --tta, and time that."""
    source = place(turn, "default")
    if not (source / "metrics.json").is_file():
        return Outcome(False, "no default run", {})
    figures: Figures = {}
    lines, well = [], True
    for name, options in (("plain", []), ("tta", ["--tta"])):
        done, found = run_evaluate(turn, source, name, *options)
        figures[name] = {"exit": done.code, "wall_s": round(done.seconds, 1)}
        well &= done.ok
        if not done.ok:
            figures[name]["reason"] = done.last_words
            lines.append(f"{name}: {done.last_words[:120]}")
            continue
        figures[name] |= {key: value for key, value in found.items() if key.endswith("accuracy")}
        gaps = figures[name]["gaps"] = gaps_to_own(found, source)
        figures[name]["notices"] = done.err.splitlines()[:5]
        lines.append(f"{name}: {done.seconds:.1f} s, gaps to the run's own {gaps}")
    return Outcome(well, "; ".join(lines), figures)


def evaluate_on_cpu(turn: Turn) -> Outcome:
    """Evaluate it with the GPU hidden."""
    source = place(turn, "default")
    if not (source / "metrics.json").is_file():
        return Outcome(False, "no default run", {})
    done, found = run_evaluate(turn, source, "cpu", environment=WITHOUT_GPU)
    if not done.ok:
        return Outcome(False, done.last_words, {"exit": done.code})
    gaps = gaps_to_own(found, source)
    return Outcome(True, f"{done.seconds:.1f} s, gaps to the GPU's figures {gaps}", {"gaps": gaps})


def run_evaluate(
    turn: Turn,
    source: Path,
    name: str,
    *options: str,
    environment: Mapping[str, str] | None = None,
) -> tuple[Done, Figures]:
    """Evaluate a run in a process; returns the process's result and the metrics that it wrote."""
    output = turn.check.work / f"evaluation_{name}"
    command = [*FASHION_LIT, "evaluate", str(source), "--output", str(output), *options]
    done = turn.run(command, environment)
    return done, read_json(output / "metrics.json")


def gaps_to_own(found: Figures, source: Path) -> dict[str, float]:
    """Return the accuracies of an evaluation minus those in the run's own metrics."""
    own = read_json(source / "metrics.json")
    keys = [key for key in ("val/accuracy", "test/accuracy") if key in own]
    return {key: round(found[key] - own[key], 6) for key in keys}
