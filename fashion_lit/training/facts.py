"""What an evaluation page says of its runs: when, how long, on what, by which command they trained.

describe_run(load_run("runs/first"))

Only what the run recorded; what an earlier version did not record is left out.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from fashion_lit.config.command import changed_settings, train_overrides
from fashion_lit.config.settings import leaves
from fashion_lit.evaluation.calibration import Calibration
from fashion_lit.evaluation.curves import read_curves
from fashion_lit.evaluation.page import Evaluation, Result, RunFacts
from fashion_lit.files import event_files
from fashion_lit.parts.kinds import plugins_of
from fashion_lit.parts.trust import plugins_override
from fashion_lit.runs.directory import RunDirectory
from fashion_lit.runs.lost_files import changed_files
from fashion_lit.text import quote_command
from fashion_lit.training.ensembles import TrainedEnsemble
from fashion_lit.training.loading import Run


def describe_run(model: Run) -> RunFacts:
    """Gather what the page says of a trained run."""
    overrides = train_overrides(model.config)
    if overrides is not None:
        overrides += plugins_override(plugins_of(model.config))
    facts = {
        "Started": start(model.files),
        "Training": duration(model.files),
        "Hardware": hardware(model.record),
        "Software": software(model.record),
        "Data": model.datamodule.description,
    }
    changed = changed_settings(model.config)
    return RunFacts(
        name=model.name,
        facts=[(name, text) for name, text in facts.items() if text],
        command=quote_command("fashion-lit", "train", *overrides) if overrides is not None else "",
        changed=[
            (key, as_text(value), as_text(default)) for key, (value, default) in changed.items()
        ],
        others=[
            (key, as_text(value))
            for key, value in leaves(model.config).items()
            if key not in changed
        ],
    )


def describe_evaluation(
    ensemble: TrainedEnsemble,
    main_result: Result,
    results: Sequence[Result],
    calibration: Calibration | str,
    command: str,
) -> Evaluation:
    """Gather the content of the evaluation page of one model or an ensemble."""
    models, names = ensemble.models, ensemble.names
    first, single = models[0], len(models) == 1
    notices = [f"{model.name}: {model.notice}" for model in models if model.notice]
    if any(model.config["data"]["validate_on_test"] for model in models):
        notices.append(
            "The best epoch was selected on the test images, so the scores are optimistic."
        )
    for model in models if single else ():
        changed = [text for text in changed_files(model.files) if text.startswith("events.")]
        notices += [f"{text} since the run finished, so curves may be short." for text in changed]
    architectures = sorted({model.architecture for model in models})
    num_parameters = [
        sum(p.numel() for p in model.classifier.network.parameters()) for model in models
    ]
    subtitle = f"{', '.join(architectures)}, {sum(num_parameters):,} parameters"
    return Evaluation(
        title=first.name if single else f"Ensemble of {', '.join(names)}",
        subtitle=f"{subtitle}, seed {first.config['seed']}" if single else subtitle,
        main=main_result,
        results=results,
        calibration=calibration,
        notices=notices,
        curves=read_curves(first.directory) if single else {},
        num_epochs=max(1, first.files.status.get("epoch", 1)),
        label_smoothing=first.config["model"]["label_smoothing"],
        is_weighted=first.config["model"]["class_weights"] is not None,
        weights=ensemble.named_weights,
        weighing=ensemble.weighing,
        runs=[replace(describe_run(m), name=n) for m, n in zip(models, names, strict=True)],
        command=command,
        with_references=first.config["data"]["name"] == "fashion_mnist",
    )


def as_text(value: object) -> str:
    """Return a setting's value as the command line takes it: null, true, [1, 2], 0.1 or text."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def start(run: RunDirectory) -> str:
    """Return when training began, in local time: the time in the name of its first event file.

    Without such a file it is when config.yaml was written.
    """
    name = "".join(path.name for path in event_files(run.path)[:1])
    found = re.match(r"events\.out\.tfevents\.(\d{1,10})\.", name)
    seconds = int(found[1]) if found else run.config_file.stat().st_mtime
    return f"{datetime.fromtimestamp(seconds).astimezone():%Y-%m-%d %H:%M %Z}"


def duration(run: RunDirectory) -> str:
    """Return the training time and its epochs, such as "14 epochs in 4 minutes 33 seconds"."""
    status = run.status
    if not status.get("seconds"):
        return ""
    minutes, seconds = divmod(round(status["seconds"]), 60)
    hours, minutes = divmod(minutes, 60)
    parts = {"hour": hours, "minute": minutes, "second": 0 if hours else seconds}
    words = [counted(number, unit) for unit, number in parts.items() if number]
    return f"{counted(status['epoch'], 'epoch')} in {' '.join(words) or 'less than a second'}"


def counted(number: int, noun: str) -> str:
    """Return a number with a noun, in the plural unless it is one."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def hardware(record: Mapping[str, Any]) -> str:
    """Return the devices that a checkpoint's record names; "" if it names none."""
    known = record.get("environment", {})
    processor = record.get("processor")
    if "device" not in known:
        return ""
    is_cpu = known["device"] == "cpu"
    device = (processor or "CPU") if is_cpu else known["device"]
    num_processes = int(known.get("processes", 1))
    parts = [device if num_processes == 1 else f"{num_processes} processes on {device}"]
    if is_cpu and "threads" in known:
        parts.append(counted(int(known["threads"]), "thread"))
    if not is_cpu and processor:
        parts.append(processor)
    return ", ".join([*parts, known["machine"]] if "machine" in known else parts)


def software(record: Mapping[str, Any]) -> str:
    """Return the versions and the precision in a checkpoint's record; "" without any."""
    known = record.get("environment", {})
    names = {"torch": "PyTorch {}", "lightning": "Lightning {}", "precision": "precision {}"}
    return ", ".join(text.format(known[key]) for key, text in names.items() if key in known)
