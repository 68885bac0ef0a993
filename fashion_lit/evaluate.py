"""Evaluate runs from their directories and write an HTML page; the runs are not changed.

fashion-lit evaluate runs/first
fashion-lit evaluate runs/a runs/b runs/c --output ensemble
fashion-lit evaluate runs/a runs/b --compare

Several runs form an ensemble, the mean of their probabilities, which is listed with its members.
A run with test=false, as in a sweep, is evaluated on its validation images only.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from fashion_lit.config.command_line import CommandParser
from fashion_lit.config.settings import flatten
from fashion_lit.data.fashion_mnist import CLASS_NAMES
from fashion_lit.errors import UserError, with_exit_codes
from fashion_lit.evaluation.calibration import Calibration, calibrate
from fashion_lit.evaluation.comparison import compare
from fashion_lit.evaluation.curves import read_curves
from fashion_lit.evaluation.figures import pictures_figure
from fashion_lit.evaluation.page import Evaluation, Result, result_row, sentences, write_evaluation
from fashion_lit.evaluation.predictions import Predictions, Split, ensemble
from fashion_lit.evaluation.scores import score
from fashion_lit.evaluation.tables import classification_report
from fashion_lit.files import check_writable, png, write_atomically
from fashion_lit.runs.directory import RunDirectory, run_of
from fashion_lit.text import align, quote_command
from fashion_lit.training.device import tune_malloc
from fashion_lit.training.facts import describe_run
from fashion_lit.training.inference import TrainedRun, choose_splits, load_run, predict
from fashion_lit.training.log_filters import silence_known_messages

OUTPUT = "evaluation"  # default output directory for several runs
ENSEMBLE = "ensemble"
NUM_PICTURES = 12  # per model of a comparison


@with_exit_codes
def main(arguments: list[str]) -> int:
    """Run `fashion-lit evaluate ARGUMENTS` and return the exit code."""
    parser = CommandParser("evaluate", __doc__)
    parser.add_argument(
        "run_dirs", nargs="+", type=Path, metavar="RUN_DIR", help="a run, or one of its checkpoints"
    )
    parser.add_argument("--split", choices=("val", "test"), help="default: both, if test=true")
    parser.add_argument(
        "--checkpoint",
        help="best, last or a file; default: best of a finished run, else the newest",
    )
    parser.add_argument(
        "--tta", action="store_true", help="also evaluate with test-time augmentation"
    )
    parser.add_argument("--output", type=Path, help="default: RUN_DIR/report, or ./evaluation")
    parser.add_argument("--compare", action="store_true", help="test whether two models differ")
    args = parser.parse_args(arguments)
    silence_known_messages()
    tune_malloc()
    check_arguments(args)
    runs = [run_of(path) for path in args.run_dirs]
    if len({run.path.resolve() for run in runs}) < len(runs) and args.checkpoint is None:
        raise UserError("Expected each run once, but one was given twice.")
    models = [load_run(run_of(path), checkpoint_of(path, args)) for path in args.run_dirs]
    if args.output is not None:
        check_writable(args.output / "metrics.json")
    for model in models:
        if model.notice:
            print(f"{model.name}: {model.notice}")
    splits = common_splits(models, args.split)
    if args.compare:
        compare_models(models, splits[-1], args.output or Path(OUTPUT))
    else:
        evaluate(models, splits, args, quote_command("fashion-lit", "evaluate", *arguments))
    return 0


def check_arguments(args: argparse.Namespace) -> None:
    """Raise UserError for arguments that contradict each other."""
    paths = [path.absolute() for path in args.run_dirs]
    if len(set(paths)) < len(paths):
        raise UserError("Expected each run once, but one of the directories was given twice.")
    if args.compare and (len(paths) < 2 or args.tta):
        raise UserError("Expected two runs or more and no --tta with --compare.")
    if args.output is not None and RunDirectory(args.output).exists:
        raise UserError(
            f"Expected a directory for the evaluation alone, but {args.output} is a run's, and "
            "files of the run would be replaced; choose another by --output."
        )
    if args.checkpoint not in (None, "best", "last") and len(paths) > 1:
        raise UserError("Expected one run with a --checkpoint FILE, but got several.")


def checkpoint_of(path: Path, args: argparse.Namespace) -> str | None:
    """Return the checkpoint to evaluate: the one that is named instead of its run, if any."""
    if not (path.is_file() and path.suffix == ".ckpt"):
        return args.checkpoint
    if args.checkpoint is not None:
        raise UserError(f"`--checkpoint` contradicts {path}; leave out one of them.")
    return str(path)


def common_splits(models: Sequence[TrainedRun], wanted: Split | None) -> list[Split]:
    """Return the splits to evaluate all runs on, "test" last; print a notice if it is omitted."""
    chosen = [choose_splits(model.config, wanted) for model in models]
    splits: list[Split] = [s for s in chosen[0] if all(s in other for other in chosen)]
    if not splits:
        raise UserError("Expected runs that evaluate on a common split; choose one with --split.")
    if wanted is None and "test" not in splits:
        print("The test set stays closed because of test=false; use --split test to open it.")
    return splits


def evaluate(
    models: Sequence[TrainedRun], splits: Sequence[Split], args: argparse.Namespace, command: str
) -> None:
    """Evaluate one model, or an ensemble and its members; write and print the evaluation."""
    results = []
    for split in splits:
        members = [predict(model, split) for model in models]
        named = list(zip([model.name for model in models], members, strict=True))
        if len(models) > 1:
            named.append((ENSEMBLE, ensemble(members)))
        if args.tta:
            views = [predict(model, split, augmented=True) for model in models]
            named.append((f"{named[-1][0]}, views", ensemble(views)))
        results += [result(name, split, predictions) for name, predictions in named]
    name = ENSEMBLE if len(models) > 1 else models[0].name
    main_result = next(r for r in reversed(results) if r.name == name)
    evaluation = describe(models, main_result, results, command)
    output = args.output or (models[0].run.path / "report" if len(models) == 1 else Path(OUTPUT))
    write_evaluation(output, evaluation)
    print_results(evaluation, output)


def result(name: str, split: Split, predictions: Predictions) -> Result:
    """Score a model's predictions on a split."""
    scores = score(predictions.probabilities, predictions.labels, CLASS_NAMES)
    return Result(name, split, predictions, scores)


def calibrated(
    models: Sequence[TrainedRun], main_result: Result, results: Sequence[Result]
) -> Calibration | str:
    """Fit the main result's temperature on validation images, predicting them if need be.

    Returns a sentence instead if the models have no validation images in common, or none at all.
    """
    if any(model.config["data"]["validate_on_test"] for model in models):
        return "No temperature is fitted, because the validation images are the test images."
    for known in results:
        if (known.name, known.split) == (main_result.name, "val"):
            return calibrate(known.predictions, main_result.predictions)
    try:
        fitted_on = ensemble([predict(model, "val") for model in models])
    except UserError:
        return "No temperature is fitted, because the runs have different validation images."
    return calibrate(fitted_on, main_result.predictions)


def describe(
    models: Sequence[TrainedRun], main_result: Result, results: Sequence[Result], command: str
) -> Evaluation:
    """Gather the content of the evaluation page of one model or an ensemble."""
    first = models[0]
    notices = [f"{model.name}: {model.notice}" for model in models if model.notice]
    if any(model.config["data"]["validate_on_test"] for model in models):
        notices.append(
            "The best epoch was selected on the test images, so the scores are optimistic."
        )
    for model in models if len(models) == 1 else ():
        changed = [text for text in model.run.changed_files() if text.startswith("events.")]
        notices += [f"{text} since the run finished, so curves may be short." for text in changed]
    architectures = sorted({model.architecture for model in models})
    num_parameters = [
        sum(p.numel() for p in model.classifier.network.parameters()) for model in models
    ]
    subtitle = f"{', '.join(architectures)}, {sum(num_parameters):,} parameters"
    single = len(models) == 1
    return Evaluation(
        title=first.name if single else f"Ensemble of {', '.join(m.name for m in models)}",
        subtitle=f"{subtitle}, seed {first.config['seed']}" if single else subtitle,
        main=main_result,
        results=results,
        calibration=calibrated(models, main_result, results),
        notices=notices,
        curves=read_curves(first.run.path) if single else {},
        num_epochs=max(1, first.run.status.get("epoch", 1)),
        label_smoothing=first.config["model"]["label_smoothing"],
        is_weighted=first.config["model"]["class_weights"] is not None,
        runs=[describe_run(model) for model in models],
        command=command,
        with_references=first.config["data"]["name"] == "fashion_mnist",
    )


def print_results(evaluation: Evaluation, output: Path) -> None:
    """Print the results, their interpretation, and where the evaluation is."""
    head = ["model", "split", "accuracy", "95 % interval", "macro F1", "log-loss", "calibration"]
    for row in align([head, *(result_row(result) for result in evaluation.results)]):
        print("  ".join(row).rstrip())
    main_result = evaluation.main
    print(f"\n{classification_report(main_result.scores.confusion, CLASS_NAMES)}")
    print("\n".join(sentences(evaluation)))
    print(f"\nThe evaluation is in {output.absolute()}; open report.html in a browser.")


def compare_models(models: Sequence[TrainedRun], split: Split, output: Path) -> None:
    """Test whether two models differ; write the text and pictures of their differences.

    With more than two runs, those that differ only in their seed count as one model.
    """
    groups = group_by_model(models)
    if len(groups) != 2:
        raise UserError(
            "Expected runs of two models for --compare, where runs of one model differ only in "
            f"their seed, but got runs of {len(groups)}."
        )
    first, second = (
        {int(model.config["seed"]): predict(model, split) for model in group} for group in groups
    )
    names = [group[0].name for group in groups]
    comparison = compare(names[0], names[1], first, second)
    print(comparison.text)
    output.mkdir(parents=True, exist_ok=True)
    write_atomically(output / "comparison.txt", f"{comparison.text}\n")
    one, other = first[min(first)], second[min(second)]
    sides = {
        "only_first": (names[0], comparison.only_first, other),
        "only_second": (names[1], comparison.only_second, one),
    }
    for file_name, (name, chosen, loser) in sides.items():
        places = chosen.nonzero()[:NUM_PICTURES, 0]
        if len(places):
            shown = (loser.images[places], loser.labels[places], loser.probabilities[places])
            title = f"Only {name} gets these right; the other predicts"
            figure = pictures_figure(*shown, CLASS_NAMES, title)
            write_atomically(output / f"{file_name}.png", png(figure))
    print(f"\nImages that only one model gets right are in {output.absolute()}.")


def group_by_model(models: Sequence[TrainedRun]) -> list[list[TrainedRun]]:
    """Group runs that differ only in their seed; exactly two runs are always two groups."""
    if len(models) == 2:
        return [[model] for model in models]
    groups: dict[str, list[TrainedRun]] = {}
    for model in models:
        settings = {k: v for k, v in flatten(model.config).items() if k != "seed"}
        groups.setdefault(repr(sorted(settings.items())), []).append(model)
    return list(groups.values())
