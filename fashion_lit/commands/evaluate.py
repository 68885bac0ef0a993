"""Evaluate runs from their directories and write an HTML page; the runs are not changed.

fashion-lit evaluate runs/first
fashion-lit evaluate runs/a runs/b runs/c --output ensemble
fashion-lit evaluate runs/a runs/b runs/c --weights fit
fashion-lit evaluate sweeps/lr_bs --select 5
fashion-lit evaluate runs/a runs/b --compare

Several runs form an ensemble, the mean of their probabilities, which is listed with its members.
Weights are fitted, and runs selected, on validation images alone; never on test images.
A run with test=false, as in a sweep, is evaluated on its validation images only.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

from fashion_lit.config.command_line import CommandParser, add_plugins, positive_integer
from fashion_lit.config.settings import flatten
from fashion_lit.errors import UserError, with_exit_codes
from fashion_lit.evaluation.calibration import Calibration, calibrate
from fashion_lit.evaluation.comparison import compare, write_comparison
from fashion_lit.evaluation.page import (
    Evaluation,
    Result,
    result_table,
    sentences,
    write_evaluation,
)
from fashion_lit.evaluation.predictions import Predictions, Split, ensemble
from fashion_lit.evaluation.scores import score
from fashion_lit.evaluation.tables import MAX_ROWS, classification_report
from fashion_lit.files import check_writable
from fashion_lit.parts.trust import trusting
from fashion_lit.runs.data_records import check_one_data_set
from fashion_lit.runs.directory import RunDirectory, run_of
from fashion_lit.sweeps.ranking import finished_runs
from fashion_lit.text import align, quote_command
from fashion_lit.training.device import tune_malloc
from fashion_lit.training.ensembles import (
    ENSEMBLES,
    TrainedEnsemble,
    refuse_test_images,
    select,
    with_fitted_weights,
)
from fashion_lit.training.facts import describe_evaluation
from fashion_lit.training.inference import choose_splits, predict
from fashion_lit.training.loading import Run, load_run
from fashion_lit.training.process import silence_known_messages

OUTPUT = "evaluation"  # default output directory for several runs
CONFLICTS = {  # flags that exclude each other, and why
    ("compare", "weights"): "a comparison tests models, not an ensemble of them",
    ("compare", "select"): "a comparison tests models, not an ensemble of them",
    ("weights", "select"): "a selection weighs each run by how often it was chosen",
    ("checkpoint", "select"): "a selection uses the best checkpoint of each finished run",
}


@with_exit_codes
def main(arguments: list[str]) -> int:
    """Run `fashion-lit evaluate ARGUMENTS` and return the exit code."""
    parser = CommandParser("evaluate", __doc__)
    parser.add_argument(
        "run_dirs",
        nargs="+",
        type=Path,
        metavar="RUN_DIR",
        help="a run, or one of its checkpoints; with --select also a sweep",
    )
    parser.add_argument("--split", choices=("val", "test"), help="default: both, if test=true")
    parser.add_argument(
        "--checkpoint",
        help="best, last or a file; default: best of a finished run, else the newest",
    )
    parser.add_argument("--tta", action="store_true", help="also with test-time augmentation")
    parser.add_argument("--output", type=Path, help="default: RUN_DIR/report, or ./evaluation")
    parser.add_argument("--weights", choices=("fit",), help="fit them on validation images")
    parser.add_argument(
        "--select",
        type=positive_integer,
        metavar="N",
        help="add a run N times, each time the one with which the ensemble is best",
    )
    parser.add_argument("--compare", action="store_true", help="test whether two models differ")
    parser.add_argument("--data-root", metavar="FOLDER", help="where the runs' data is now")
    add_plugins(parser)
    args = parser.parse_args(arguments)
    with trusting(args.plugins):
        return evaluate_runs(args, arguments)


def evaluate_runs(args: argparse.Namespace, arguments: Sequence[str]) -> int:
    """Evaluate the runs that a parsed command line names; return the exit code."""
    silence_known_messages()
    tune_malloc()
    check_arguments(args)
    candidates = find_candidates(args.run_dirs) if args.select else []
    loaded = TrainedEnsemble([] if args.select else load_runs(args))
    if args.output is not None:
        check_writable(args.output / "metrics.json")
    if args.select:
        loaded = select(candidates, args.select, args.data_root)
    models = loaded.models
    for model in models:
        if model.notice:
            print(f"{model.name}: {model.notice}")
    splits = common_splits(models, args.split)
    if args.compare:
        compare_models(models, splits[-1], args.output or Path(OUTPUT))
    else:
        evaluate(loaded, splits, args, quote_command("fashion-lit", "evaluate", *arguments))
    return 0


def check_arguments(args: argparse.Namespace) -> None:
    """Raise UserError for arguments that contradict each other."""
    for path in args.run_dirs:
        if "=" in path.name and not path.exists():
            flags = "--plugins NAME, --data-root FOLDER"
            raise UserError(f"Expected directories of runs, but got `{path}`; flags: {flags}.")
    paths = [path.absolute() for path in args.run_dirs]
    if len(set(paths)) < len(paths):
        raise UserError("Expected each run once, but one of the directories was given twice.")
    if args.compare and (len(paths) < 2 or args.tta):
        raise UserError("Expected two runs or more and no --tta with --compare.")
    for (one, other), reason in CONFLICTS.items():
        if getattr(args, one) and getattr(args, other):
            raise UserError(
                f"`--{one}` and `--{other}` exclude each other, because {reason}; leave out one."
            )
    if args.weights and len(paths) < 2:
        raise UserError("Expected two runs or more with --weights, but got one.")
    output = args.output or Path(OUTPUT)
    if (args.output or args.select or len(paths) > 1) and RunDirectory(output).exists:
        raise UserError(
            f"Expected a directory for the evaluation alone, but {output} is a run's, and "
            "files of the run would be replaced; choose another by --output."
        )
    if args.checkpoint not in (None, "best", "last") and len(paths) > 1:
        raise UserError("Expected one run with a --checkpoint FILE, but got several.")


def load_runs(args: argparse.Namespace) -> list[Run]:
    """Load the named runs; raises UserError if one is named twice, or has nothing to fit on."""
    runs = [run_of(path) for path in args.run_dirs]
    if len({run.path.resolve() for run in runs}) < len(runs) and args.checkpoint is None:
        raise UserError("Expected each run once, but one was given twice.")
    given = {"checkpoint": args.checkpoint, "data_root": args.data_root}
    loaded = [load_run(path, **given) for path in args.run_dirs]
    models = [run.load() for run in loaded]
    check_one_data_set((str(run.files.path), run.data) for run in models)
    for model in models if args.weights else ():
        if model.config["data"]["validate_on_test"]:
            refuse_test_images(model.name)
    return models


def find_candidates(paths: Sequence[Path]) -> list[Path]:
    """Return the finished runs to select from; print what is left out, and why.

    Raises UserError unless there are two or more, with validation images.
    """
    for path in paths:
        if not path.is_dir():
            raise UserError(
                f"Expected directories of runs or sweeps with --select, but {path} is none."
            )
    candidates, left_out = finished_runs(paths)
    for text in left_out:
        print(f"Left out: {text}")
    if len(candidates) < 2:
        raise UserError(
            "Expected two finished runs or more to select from, but found "
            f"{len(candidates)} in {', '.join(map(str, paths))}."
        )
    check_one_data_set((str(run.path), run.data) for run in candidates)
    for run in candidates:
        if run.settings.get("data.validate_on_test"):
            refuse_test_images(run.path.name)
    return [run.path for run in candidates]


def common_splits(models: Sequence[Run], wanted: Split | None) -> list[Split]:
    """Return the splits to evaluate all runs on, "test" last; print a notice if it is omitted."""
    chosen = [choose_splits(model.config, wanted) for model in models]
    splits: list[Split] = [s for s in chosen[0] if all(s in other for other in chosen)]
    if not splits:
        raise UserError("Expected runs that evaluate on a common split; choose one with --split.")
    for model in models if "test" in splits else ():
        if not model.datamodule.source.num_test:
            raise UserError(f"Expected test images, but the data of {model.name} have none.")
    if wanted is None and "test" not in splits:
        print("The test set stays closed because of test=false; use --split test to open it.")
    return splits


def evaluate(
    loaded: TrainedEnsemble, splits: Sequence[Split], args: argparse.Namespace, command: str
) -> None:
    """Evaluate one model, or an ensemble and its members; write and print the evaluation."""
    models, several = loaded.models, len(loaded.models) > 1
    needed: set[Split] = {*splits, "val"} if args.weights else {*splits}
    known: dict[Split, list[Predictions]] = {
        split: [predict(model, split) for model in models] for split in needed
    }
    if args.weights:
        loaded = with_fitted_weights(loaded, known["val"])
    name = loaded.name if several else models[0].name
    results = []
    for split in splits:
        named = list(zip(loaded.names, known[split], strict=True))
        if args.weights:
            named.append((ENSEMBLES[0], ensemble(known[split])))
        if several:
            named.append((name, ensemble(known[split], loaded.weights)))
        if args.tta:
            views = [predict(model, split, augmented=True) for model in models]
            named.append((f"{name}, views", ensemble(views, loaded.weights)))
        names = models[0].datamodule.class_names
        results += [
            Result(name, split, found, score(found.probabilities, found.labels, names))
            for name, found in named
        ]
    main_result = next(r for r in reversed(results) if r.name == name)
    calibration = calibrated(loaded, main_result, known)
    evaluation = describe_evaluation(loaded, main_result, results, calibration, command)
    single = not several and args.select is None
    output = args.output or (models[0].directory / "report" if single else Path(OUTPUT))
    write_evaluation(output, evaluation)
    print_results(evaluation, output)


def calibrated(
    loaded: TrainedEnsemble, main_result: Result, known: Mapping[Split, Sequence[Predictions]]
) -> Calibration | str:
    """Fit the main result's temperature on validation images, predicting them if need be.

    Returns a sentence instead if the models have no validation images in common, or none at all.

    Args:
        loaded: the models.
        main_result: the result to calibrate.
        known: the models' predictions by split.
    """
    if any(model.config["data"]["validate_on_test"] for model in loaded.models):
        return "No temperature is fitted, because the validation images are the test images."
    members = known.get("val") or [predict(model, "val") for model in loaded.models]
    try:
        fitted_on = ensemble(members, loaded.weights)
    except UserError:
        return "No temperature is fitted, because the runs have different validation images."
    return calibrate(fitted_on, main_result.predictions, main_result.scores.class_names)


def print_results(evaluation: Evaluation, output: Path) -> None:
    """Print the results, their interpretation, and where the evaluation is."""
    for row in align(result_table(evaluation)):
        print("  ".join(row).rstrip())
    scores = evaluation.main.scores
    table = classification_report(scores.confusion, scores.class_names, max_rows=MAX_ROWS)
    print(f"\n{table}")
    print("\n".join(sentences(evaluation)))
    print(f"\nThe evaluation is in {output.absolute()}; open report.html in a browser.")


def compare_models(models: Sequence[Run], split: Split, output: Path) -> None:
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
    one, other = first[min(first)], second[min(second)]
    class_names = models[0].datamodule.class_names
    write_comparison(output, comparison, (names[0], one), (names[1], other), class_names)
    print(f"\nImages that only one model gets right are in {output.absolute()}.")


def group_by_model(models: Sequence[Run]) -> list[list[Run]]:
    """Group runs that differ only in their seed; exactly two runs are always two groups."""
    if len(models) == 2:
        return [[model] for model in models]
    groups: dict[str, list[Run]] = {}
    for model in models:
        settings = {k: v for k, v in flatten(model.config).items() if k != "seed"}
        groups.setdefault(repr(sorted(settings.items())), []).append(model)
    return list(groups.values())
