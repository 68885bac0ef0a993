"""Find a learning rate by a range test: one short training whose rate rises until it diverges.

fashion-lit find-lr model=report_cnn optimizer=adamw

Builds what `fashion-lit train` with these settings builds, and multiplies the learning rate by the
same factor at every step (Smith 2015, https://arxiv.org/abs/1506.01186). Draws the loss on the
screen and into a PNG file, and suggests the rate in the middle of the curve's bottom, where the
loss is within 5 % of its minimum, as `optimizer.lr`: the peak of every schedule. Leaves no run.
The settings' schedule and number of epochs have no effect on the test; they belong to the training
command that it prints.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fashion_lit.api.launch import ignore_foreign_ranks
from fashion_lit.config.command_line import positive_integer, positive_number
from fashion_lit.config.compose import (
    compose_jobs,
    hydra_errors_for_users,
    with_teachers_in_list,
)
from fashion_lit.config.flags import SettingsParser
from fashion_lit.config.groups import SWEEP, parse_override, with_config_dirs
from fashion_lit.config.overrides import prepare_overrides
from fashion_lit.config.settings import Config, network_name
from fashion_lit.config.trainer import check_driver
from fashion_lit.config.typed import check_names
from fashion_lit.errors import Stopped, UserError, with_exit_codes
from fashion_lit.files import check_writable, png, write_atomically
from fashion_lit.parts.trust import trusting
from fashion_lit.runs.signals import StopSignals
from fashion_lit.text import quote_command, shorten

# Importing torch takes seconds, so its users are imported after the settings are checked.
if TYPE_CHECKING:
    from fashion_lit.evaluation.curves import RangeCurve

LOWEST, HIGHEST = 1e-12, 1e6  # rates that can be tested
MIN_STEPS = 20
MIN_POINTS = 10  # before the divergence
ONE = "find-lr tests one configuration; leave out -m, and give each setting one value."
# Settings without effect, and why.
REFUSED = {
    "optimizer.lr": "find-lr finds it; leave it out, and set --min-lr and --max-lr if need be",
    "run_dir": "find-lr leaves no run; leave it out, or fine-tune a run with init_from=RUN",
    "ckpt_path": "a training continues it at its own rate; use init_from to take its weights alone",
    "sweep_name": "find-lr tests one configuration",
    "launcher": "find-lr tests one configuration",
}
# Arguments of the Trainer that set a run's length and validations, or only inspect it.
NOT_TESTED = (
    "max_epochs",
    "max_steps",
    "max_time",
    "min_epochs",
    "min_steps",
    "val_check_interval",
    "check_val_every_n_epoch",
    "num_sanity_val_steps",
    "detect_anomaly",  # would raise an error where the test ends
    "profiler",
)


@with_exit_codes
def main(arguments: list[str]) -> int:
    """Run `fashion-lit find-lr ARGUMENTS`.

    Returns the exit code: 0 if there is a suggestion; 1 if there is none; 2 if the command is
    invalid; 128 + the signal's number if a signal stopped it.
    """
    args = parse(arguments)
    if args is None:
        return 0
    try:
        with StopSignals() as signals, hydra_errors_for_users():
            return find(args, signals)
    except Stopped as stop:
        print(f"\nStopped by {stop.name}.", flush=True)
        raise


def parse(arguments: Sequence[str]) -> argparse.Namespace | None:
    """Parse the command line; return None if it asks for help, which is then printed."""
    parser = SettingsParser("find-lr", __doc__)
    number = {"type": positive_number, "metavar": "RATE"}
    parser.add_argument("--min-lr", default=1e-5, help="the first rate (1e-5)", **number)
    parser.add_argument("--max-lr", default=10.0, help="the last rate (10)", **number)
    parser.add_argument(
        "--steps", type=positive_integer, default=200, help="steps from one to the other (200)"
    )
    parser.add_argument(
        "--output", type=Path, default=Path("find_lr.png"), metavar="FILE.png",
        help="the picture (find_lr.png); replaces the one of an earlier test",
    )  # fmt: skip
    if {"-m", "--multirun"} & set(arguments):
        raise UserError(ONE)
    args = parser.parse(arguments)
    if args.help:
        parser.print_help()
        return None
    for name, rate in (("--min-lr", args.min_lr), ("--max-lr", args.max_lr)):
        if not LOWEST <= rate <= HIGHEST:
            raise UserError(
                f"Expected `{name}` to be from {LOWEST:g} to {HIGHEST:g}, but got {rate:g}."
            )
    if args.min_lr >= args.max_lr:
        raise UserError(
            f"Expected `--min-lr` to be below --max-lr={args.max_lr:g}, but got {args.min_lr:g}."
        )
    if args.steps < MIN_STEPS:
        raise UserError(f"Expected `--steps` to be at least {MIN_STEPS}, but got {args.steps}.")
    if args.output.suffix.lower() != ".png":
        raise UserError(f"Expected `--output` to end in .png, but got {args.output}.")
    return args


def find(args: argparse.Namespace, signals: StopSignals) -> int:
    """Check the settings, test the rates and show the result; return the exit code."""
    typed = with_teachers_in_list(with_config_dirs(args.overrides, args.config_dir))
    check_typed(typed)
    overrides = prepare_overrides(typed)
    check_names(overrides)
    (composed,) = compose_jobs(overrides, multirun=False)
    with trusting(composed["plugins"]):
        return find_in(composed, overrides, args, signals)


def find_in(
    composed: Config, overrides: Sequence[str], args: argparse.Namespace, signals: StopSignals
) -> int:
    """Test the rates with a composed configuration; return the exit code."""
    check_driver(composed)
    check_writable(args.output)
    ignore_foreign_ranks(composed.get("trainer"))
    from fashion_lit.evaluation.curves import geometric_rates
    from fashion_lit.runs.resume import resolve_run_config
    from fashion_lit.training.device import check_machine
    from fashion_lit.training.run import describe, print_traceback_if_unexpected

    config, _ = resolve_run_config(composed, overrides)
    check_machine(config)
    check_one_process(config)
    try:
        rates = geometric_rates(args.min_lr, args.max_lr, args.steps)
        curve, diverged = train_at_rates(config, rates, signals)
    except UserError:
        raise
    except Exception as error:
        print_traceback_if_unexpected(error)
        print(f"fashion-lit find-lr: {describe(error)}", file=sys.stderr)
        return 1
    return show(curve, args, diverged=diverged)


def show(curve: "RangeCurve", args: argparse.Namespace, *, diverged: bool) -> int:
    """Write the picture, print curve and suggestion; return the exit code, 1 without suggestion."""
    from fashion_lit.evaluation.figures import range_test_figure

    if len(curve.losses) < MIN_POINTS:
        print(
            f"\nThe loss diverged within {len(curve.losses)} steps, which are too few for a curve; "
            "lower --min-lr."
        )
        return 1
    figure = range_test_figure(curve, shorten(" ".join(args.overrides)) or "the default settings")
    args.output.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(args.output, png(figure))
    print(f"\n{curve.text()}\n\n{describe_end(curve, args, diverged=diverged)}")
    print(f"The picture is {args.output}")
    if curve.suggestion is None:
        return 1
    directories = [f"--config-dir={directory}" for directory in args.config_dir]
    lr = f"optimizer.lr={curve.suggestion:.2g}"
    command = quote_command("fashion-lit", "train", *directories, *args.overrides, lr)
    print(f"\n  train with it: {command}")
    return 0


def check_typed(typed: Sequence[str]) -> None:
    """Raise UserError for settings that have no effect on the test or on the command it prints."""
    for override in map(parse_override, typed):
        key = override.get_key_element().lstrip("+~")
        name = key if key in REFUSED else key.split(".")[0]
        if name in REFUSED:
            raise UserError(f"`{key}` has no effect, because {REFUSED[name]}.")
        if key == SWEEP or override.is_sweep_override():
            raise UserError(f"`{override.input_line}` holds several values, but {ONE}")


def check_one_process(config: Config) -> None:
    """Raise UserError for settings of a training in several processes."""
    from fashion_lit.training.device import num_devices

    trainer, batch_size = config["trainer"], config["data"]["batch_size"]
    num_processes = num_devices(trainer) * trainer.get("num_nodes", 1)
    if num_processes > 1:
        raise UserError(
            f"Expected one device, because find-lr tests in one process, but these settings use "
            f"{num_processes}; a step is the same with trainer.devices=1 trainer.num_nodes=1 "
            f"data.batch_size={num_processes * batch_size}."
        )


def train_at_rates(
    config: Config, rates: Sequence[float], signals: StopSignals
) -> tuple["RangeCurve", bool]:
    """Train once, the rate of step i being rates[i]; return the losses, and whether they diverged.

    Lightning's `Tuner.lr_find` would give all parameter groups one rate, leave out the callbacks,
    on whose draws dropout depends, and write a checkpoint.
    """
    import lightning as L

    from fashion_lit.evaluation.curves import RangeCurve, window_of
    from fashion_lit.models.build import build_classifier
    from fashion_lit.runs.initial_weights import load_initial_weights
    from fashion_lit.runs.teachers import checkpoint_of
    from fashion_lit.training.build import build_datamodule, compile_network, trainer_arguments
    from fashion_lit.training.callbacks import KeyedDropout, RangeTest, Teaching
    from fashion_lit.training.device import tune_malloc
    from fashion_lit.training.lightning_internals import LightningInternals
    from fashion_lit.training.process import silence_known_messages
    from fashion_lit.training.terminal import describe_start

    silence_known_messages()
    tune_malloc()
    datamodule = build_datamodule(config)
    L.seed_everything(config["seed"], verbose=False)
    # With a rate of 1, the rate of each parameter group is its factor.
    constant = {"optimizer": config["optimizer"] | {"lr": 1.0}, "scheduler": {"name": "constant"}}
    constant["model"] = config["model"] | {"swa_start": None}
    classifier = build_classifier(config | constant, datamodule.class_names, datamodule.channels)
    notice = load_initial_weights(classifier, config) if config.get("init_from") else ""
    compile_network(classifier.network, config)
    show_bar = config["trainer"].get("enable_progress_bar", True)
    test = RangeTest(rates, window_of(rates), signals, show_bar=show_bar)
    teachers = [checkpoint_of(place) for place in config.get("teacher") or ()]
    teaching = [Teaching(teachers, config.get("distillation") or {})] if teachers else []
    arguments = trainer_arguments(config)
    trainer = L.Trainer(
        **{key: value for key, value in arguments.items() if key not in NOT_TESTED},
        max_epochs=-1,  # the test ends it
        check_val_every_n_epoch=len(rates) + 1,  # never: an epoch has at least one step
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        callbacks=[LightningInternals(), KeyedDropout(config["seed"]), *teaching, test],
    )
    print(describe_start(network_name(config), classifier, datamodule, trainer))
    print(*filter(None, [notice]), f"{len(rates)} steps, {rates[0]:g} to {rates[-1]:g}", sep="\n")
    trainer.fit(classifier, datamodule)
    return RangeCurve(rates[: len(test.losses)], test.losses, test.window), test.diverged


def describe_end(curve: "RangeCurve", args: argparse.Namespace, *, diverged: bool) -> str:
    """Return the suggestion, or why there is none, and how the test ended."""
    first, last = (curve.rates[index] for index in curve.bottom)
    end = f"The loss diverged at {curve.rates[-1]:.2g}."
    if not diverged:
        end = f"The loss did not diverge up to --max-lr={args.max_lr:g}."
    is_open = curve.bottom[1] == len(curve.rates) - 1 and not diverged
    if curve.suggestion is None:
        rise = f"; it rises from {last:.2g} on" if not is_open else "; set a larger --max-lr"
        return f"{end}\nNo suggestion: the loss never falls by 5 %{rise}."
    if is_open:
        end += " It has not begun to rise there, so a larger --max-lr may give a higher suggestion."
    return (
        f"{end}\nSuggested learning rate: {curve.suggestion:.2g}, in the middle of {first:.2g} to "
        f"{last:.2g}, where the smoothed loss is within 5 % of its minimum."
    )
