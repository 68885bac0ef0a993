"""Train, validate and test one classifier, or a multirun of them; leave a run directory each.

    fashion-lit train model=report_cnn optimizer=adamw optimizer.lr=1e-3
    fashion-lit train -m optimizer.lr=0.1,0.2 data.batch_size=128,256 sweep_name=lr_batch_size

To read: `run_job` handles one run's fate, `train` is the run.
"""

import os
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import lightning as L
import torch
from hydra._internal.utils import _run_hydra, get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from hydra.version import setbase
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import SIGTERMException
from omegaconf import DictConfig

from fashion_lit.augment import Augment
from fashion_lit.callbacks import (
    KeyedDropout,
    ReportProgress,
    RunLogger,
    TensorBoardPages,
    TrainingSpeed,
)
from fashion_lit.classifier import ImageClassifier
from fashion_lit.config import (
    CONF_DIR,
    LOCATION_KEYS,
    compose_jobs,
    flatten,
    job_name,
    model_name,
    name_jobs,
    parse_override,
    prepare_overrides,
    to_plain,
)
from fashion_lit.datamodule import FashionMNISTDataModule
from fashion_lit.device import choose_precision, peak_memory, resolve_accelerator
from fashion_lit.errors import UserError
from fashion_lit.fashion_mnist import CLASS_NAMES
from fashion_lit.quiet import silence_known_messages
from fashion_lit.report import confusion_matrix_figure
from fashion_lit.run_directory import RunDirectory, State
from fashion_lit.schema import CLASSIFIERS, SOURCES, Config, check, keyword_fields
from fashion_lit.terminal import TerminalTable, print_end, print_start, print_sweep_end


class JobFailedError(Exception):
    """A job of a multirun has failed and has said so; the others go on, and the exit code is 1."""


def main(arguments: list[str]) -> int:
    """Run `fashion-lit train ARGUMENTS`.

    Returns the exit code: 0, all done; 1, a run failed; 2, the configuration is wrong and nothing
    was built. A stopped run exits with 130 (Ctrl-C) or 143 (SIGTERM).
    """
    parser = get_args_parser()
    args = parser.parse_args(arguments)
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then lets exceptions through to here
    setbase("1.3")
    sweep_dir: Path | None = None
    try:
        args.overrides = prepare_overrides(args.overrides)
        if not (args.cfg or args.help or args.hydra_help or args.info or args.shell_completion):
            jobs = compose_jobs(args.overrides, multirun=args.multirun)
            for job in jobs:
                check(job)
            check_mode(args.overrides, jobs, multirun=args.multirun)
            if args.multirun:
                args.overrides += name_jobs(args.overrides, jobs[0]["sweep_name"])
                sweep_dir = Path(jobs[0]["output_root"], "sweeps", jobs[0]["sweep_name"])
        _run_hydra(args, parser, run_job, config_path=str(CONF_DIR), config_name="train")
    except (UserError, HydraException) as error:
        print(f"fashion-lit train: {error}", file=sys.stderr)
        return 2
    except JobFailedError:
        return 1
    except SystemExit as stop:
        return int(stop.code or 0)
    finally:
        if sweep_dir:
            print_sweep_end(sweep_dir.absolute())
    return 0


def check_mode(overrides: Sequence[str], jobs: Sequence[Config], *, multirun: bool) -> None:
    """Raise UserError for what only one run can do, or only a multirun."""
    given = {parse_override(text).key_or_group for text in overrides}
    if multirun and "run_dir" in given:
        raise UserError(
            "`run_dir` is the place of one run; name a multirun by sweep_name=NAME, and its place "
            "by output_root=DIR."
        )
    if not multirun and "sweep_name" in given:
        raise UserError("`sweep_name` names a multirun; add -m, or use run_dir=DIR for one run.")
    devices = [job["trainer"].get("devices", "auto") for job in jobs]
    if multirun and any(value != 1 and value != "1" for value in devices):
        raise UserError(
            "Expected `trainer.devices` to be 1 in a multirun, since the second process of a run "
            "would start the whole sweep again; start these runs one by one."
        )


def run_job(composed: DictConfig) -> float:
    """Do what Hydra asks for: one run, in the directory it chose; returns its val/accuracy."""
    settings = HydraConfig.get()
    if settings.mode == RunMode.MULTIRUN:
        name = job_name(settings.job.override_dirname)
        print(f"\n=== job {settings.job.num + 1}: {name}", flush=True)
    config = to_plain(composed)
    try:
        check(config)
        config = {key: value for key, value in config.items() if key not in LOCATION_KEYS}
        run = open_run_directory(Path(settings.runtime.output_dir), config)
    except UserError as error:
        print(f"fashion-lit train: {error}", file=sys.stderr)
        _fail(settings.mode, code=2)
    try:
        metrics = train(config, run)
    except SIGTERMException:
        record_status(run, "interrupted", "SIGTERM")
        sys.exit(143)
    except (KeyboardInterrupt, SystemExit):  # Lightning turns the first into the second
        record_status(run, "interrupted", "Ctrl-C")
        sys.exit(130)
    except Exception as error:
        if not isinstance(error, UserError):
            traceback.print_exc()
        reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        record_status(run, "failed", reason)
        print(f"fashion-lit train: {reason}\nThe run in {run.path} failed.", file=sys.stderr)
        _fail(settings.mode, code=1)
    record_status(run, "finished")
    return metrics["val/accuracy"]


def _fail(mode: RunMode | None, *, code: int) -> NoReturn:
    """End a single run's process; in a multirun, let Hydra go on with the next job."""
    if mode == RunMode.MULTIRUN:
        raise JobFailedError from None
    sys.exit(code)


def open_run_directory(path: Path, config: Config) -> RunDirectory:
    """Claim the directory in the first process of a run; the others of DDP only use it."""
    if getattr(rank_zero_only, "rank", 0):
        return RunDirectory(path)
    run = RunDirectory.create(path, config)
    run.write_status("running")
    return run


@rank_zero_only
def record_status(run: RunDirectory, state: State, reason: str = "") -> None:
    """Write the run's last status, from one process."""
    run.write_status(state, reason=reason)


def train(config: Config, run: RunDirectory) -> dict[str, float]:
    """Fit, validate the best checkpoint, test it once if `test`, record; returns the metrics."""
    began = time.perf_counter()
    silence_known_messages()
    L.seed_everything(config["seed"], verbose=False)
    classifier = build_classifier(config)
    datamodule = build_datamodule(config, classifier)
    trainer = build_trainer(config, run)
    print_start(model_name(config), classifier, datamodule, trainer, run.path)

    trainer.fit(classifier, datamodule)
    metrics = scalars(trainer, "train/") | peak_memory(trainer.strategy.root_device)

    best = str(run.best_checkpoint)
    trainer.validate(classifier, datamodule, ckpt_path=best, verbose=False)
    metrics |= scalars(trainer, "val/")
    metrics["best_epoch"] = torch.load(best, weights_only=True)["epoch"] + 1
    if config["test"]:
        trainer.test(classifier, datamodule, ckpt_path=best, verbose=False)
        metrics |= scalars(trainer, "test/")

    metrics["seconds"] = time.perf_counter() - began
    if trainer.is_global_zero:
        assert isinstance(trainer.logger, RunLogger)
        trainer.logger.experiment.close()
        run.write_metrics(metrics)
        print_end(classifier, trainer, run, metrics)
    return metrics


def build_classifier(config: Config) -> ImageClassifier:
    """Build the classifier that `model.name` chooses."""
    arguments = dict(config["model"])
    classifier = CLASSIFIERS[arguments.pop("name")]
    return classifier(**arguments, optimizer=config["optimizer"], scheduler=config["scheduler"])


def build_datamodule(config: Config, classifier: ImageClassifier) -> FashionMNISTDataModule:
    """Build the data module over the images that `data.name` chooses; reads nothing yet."""
    arguments = dict(config["data"])
    source = SOURCES[arguments.pop("name")]
    source_arguments = {k: arguments.pop(k) for k in keyword_fields(source) if k in arguments}
    return FashionMNISTDataModule(
        source(**source_arguments),
        **arguments,
        num_channels=classifier.num_channels,
        augment=Augment(**config["augment"]),
        seed=config["seed"],
    )


def build_trainer(config: Config, run: RunDirectory) -> L.Trainer:
    """Build Lightning's Trainer with everything that a run writes and shows."""
    arguments: dict[str, Any] = dict(config["trainer"])
    device_type = resolve_accelerator(arguments.get("accelerator", "auto"))
    precision, notice = choose_precision(arguments.pop("precision"), device_type)
    if notice:
        rank_zero_only(print)(notice)
    show_bar = arguments.pop("enable_progress_bar", True)
    speed = TrainingSpeed()
    return L.Trainer(
        **arguments,
        precision=precision,  # pyright: ignore[reportArgumentType]
        enable_progress_bar=False,  # TerminalTable has a bar of its own
        default_root_dir=run.path,
        logger=RunLogger(run.path),
        enable_autolog_hparams=False,  # TensorBoardPages logs them, with their metrics
        use_distributed_sampler=False,  # every rank draws its own share already
        callbacks=[
            KeyedDropout(config["seed"]),
            speed,
            TerminalTable(speed, show_bar=show_bar),
            TensorBoardPages(flatten(config), lambda c: confusion_matrix_figure(c, CLASS_NAMES)),
            ModelCheckpoint(
                run.checkpoint_dir,
                filename=run.best_checkpoint.stem,
                monitor="val/accuracy",
                mode="max",
                save_on_train_epoch_end=False,
                enable_version_counter=False,
            ),
            # `save_last` would write the last checkpoint only together with a new best one
            ModelCheckpoint(
                run.checkpoint_dir,
                filename=run.last_checkpoint.stem,
                save_on_train_epoch_end=True,
                enable_version_counter=False,
            ),
            ReportProgress(lambda epoch, step: run.write_status("running", epoch=epoch, step=step)),
        ],
    )


def scalars(trainer: L.Trainer, prefix: str) -> dict[str, float]:
    """Return the logged metrics whose names start with `prefix`, as plain numbers."""
    logged = trainer.callback_metrics.items()
    return {name: float(value) for name, value in logged if name.startswith(prefix)}
