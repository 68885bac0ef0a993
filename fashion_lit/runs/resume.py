"""Resume a stopped run: find its settings and its newest valid checkpoint.

`resolve_run_config` is called before anything is built, then `open_run` under the run's lock.
"""

import contextlib
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fashion_lit.config.compose import amend
from fashion_lit.config.groups import parse_override
from fashion_lit.config.schema import check
from fashion_lit.config.schema import source_of as image_source_of
from fashion_lit.config.settings import (
    LOCATION_KEYS,
    Config,
    absolute,
    check_epochs_left,
    check_resumable,
    differences,
    is_result_neutral,
    may_change,
    network_name,
)
from fashion_lit.config.typed import check_effects
from fashion_lit.data.classes import names_in_order, weights_in_order
from fashion_lit.data.sources.fashion_mnist import BASE_DIR, IS_CHECKOUT
from fashion_lit.errors import UserError
from fashion_lit.files import digest_of_file
from fashion_lit.models.build import classifier_shapes
from fashion_lit.runs.directory import RunDirectory
from fashion_lit.runs.initial_weights import (
    check_initial_weights,
    source_of,
    with_settings_of_source,
)
from fashion_lit.runs.integrity import IS_RESUMABLE, RECORD, check_fits, read_checkpoint
from fashion_lit.runs.lost_files import (
    check_recorded_files,
    check_result,
    check_source,
    restore_config,
)
from fashion_lit.runs.teachers import DIGESTS, check_teachers, keep_teachers

# The environment variables by which the first process of a DDP run passes its directory and its
# checkpoint to the processes that Lightning starts.
RUN_DIR_VARIABLE, CHECKPOINT_VARIABLE = "FASHION_LIT_RUN_DIR", "FASHION_LIT_CHECKPOINT"

SETTINGS_BY_CLASS = (
    ("model", "class_weights", weights_in_order),
    ("data", "class_sampling", weights_in_order),
    ("augment", "classes", names_in_order),
)


@dataclass(frozen=True)
class Restart:
    """Where a run starts or resumes.

    Args:
        checkpoint: the file to load, or None to start without one.
        record: what `ResumeCheckpoints` stored in it.
        same_run: True if the checkpoint is the run's own, False if it starts a new run.
    """

    checkpoint: Path | None = None
    record: Mapping[str, Any] = field(default_factory=dict)
    same_run: bool = False


def resolve_run_config(composed: Config, overrides: Sequence[str]) -> tuple[Config, Path]:
    """Return a single run's checked settings and its directory.

    An existing run takes the settings recorded in its directory, and a new run from `ckpt_path` or
    `init_from` those recorded in the checkpoint. Raises UserError if an override would change the
    result.
    """
    composed = with_absolute_paths(composed)
    run_dir = Path(str(composed["run_dir"]))
    run = RunDirectory(run_dir)
    if not run.is_config_intact:
        restore_config(run)
    locations = {key: composed[key] for key in LOCATION_KEYS}
    settings = {key: value for key, value in composed.items() if key not in LOCATION_KEYS}
    checkpoint = None if composed.get("ckpt_path") is None else Path(str(composed["ckpt_path"]))
    record: Mapping[str, Any] = {}
    if checkpoint is not None and composed.get("init_from") is not None and not run.exists:
        raise UserError(
            "Expected one of `init_from`, which takes the weights alone, and `ckpt_path`, which "
            "continues a training, but got both."
        )
    if run.exists:
        # An old record may lack a result-neutral setting that was added since.
        newer = {key: value for key, value in composed.items() if is_result_neutral(key)}
        recorded = newer | run.config
        wanted = with_classes_in_order(amend(recorded, overrides, composed))
        wanted = with_recorded_weights(wanted, recorded)
        settings = check_resumable(recorded, wanted, f"the run in {run.path}", run.path)
    elif checkpoint is not None:
        record = read_record(checkpoint)
        recorded = record["config"]
        wanted = with_classes_in_order(amend(recorded, overrides, composed))
        wanted = with_recorded_weights(wanted, recorded)
        wanted |= {"ckpt_path": recorded["ckpt_path"]}
        settings = check_resumable(recorded, wanted, f"the checkpoint {checkpoint}", checkpoint)
        settings |= {"ckpt_path": str(checkpoint.absolute()), "init_from": None}
        check_epochs_left(record["epochs_done"], settings, checkpoint)
        if "run_dir" not in {parse_override(text).key_or_group for text in overrides}:
            run_dir = named_after(settings, run_dir, composed)
    elif composed.get("init_from") is not None:
        settings = with_settings_of_source(composed, overrides)
        if "run_dir" not in {parse_override(text).key_or_group for text in overrides}:
            run_dir = named_after(settings, run_dir, composed)
    settings = check(settings | locations)
    if not run.exists:
        check_effects(settings, overrides, image_source_of(settings).channels)
        check_initial_weights(settings)
        check_teachers(settings, record)
    return {key: value for key, value in settings.items() if key not in LOCATION_KEYS}, run_dir


def named_after(settings: Config, run_dir: Path, composed: Config) -> Path:
    """Return a new run's directory, named after its network instead of the composed one."""
    name = run_dir.name.removesuffix(network_name(composed)) + network_name(settings)
    return run_dir.with_name(name)


def with_absolute_paths(config: Config) -> Config:
    """Return a configuration whose files are found from any current directory."""
    if not all(isinstance(config.get(group), dict) for group in ("data", "model")):
        return config  # `check` will say so, as for values of other types below
    data, model = dict(config["data"]), dict(config["model"])
    if data.get("root"):
        data["root"] = absolute(data["root"])
    elif data.get("name") == "fashion_mnist" and "root" in data and not IS_CHECKOUT:
        data["root"] = str(BASE_DIR / "data")
    mirrors = data.get("mirrors")
    if isinstance(mirrors, list) and all(isinstance(mirror, str) for mirror in mirrors):
        data["mirrors"] = [
            mirror if "://" in mirror else str(BASE_DIR / Path(mirror).expanduser())
            for mirror in mirrors
        ]
    if model.get("weights"):
        model["weights"] = absolute(model["weights"])
    places = {key: absolute(config[key]) for key in ("ckpt_path", "init_from") if config.get(key)}
    return config | {"data": data, "model": model} | places


def with_classes_in_order(config: Config) -> Config:
    """Return a configuration whose settings by class are lists, as in a record; see `check`."""
    for group, key, convert in SETTINGS_BY_CLASS:
        settings = config.get(group)
        if isinstance(settings, dict) and settings.get(key) is not None:
            # `check` refuses these values, and settings of data that has no classes.
            with contextlib.suppress(ValueError, UserError):
                ordered = convert(settings[key], image_source_of(config).class_names)
                config = config | {group: settings | {key: ordered}}
    return config


def with_recorded_weights(wanted: Config, recorded: Config) -> Config:
    """Return `wanted` with `model.weights` as recorded, if both name the same file.

    Earlier versions recorded the path as it was typed.
    """
    before, now = (config["model"].get("weights") for config in (recorded, wanted))
    if not before or not now or absolute(before) != absolute(now):
        return wanted
    return wanted | {"model": wanted["model"] | {"weights": before}}


def read_record(path: Path) -> dict[str, Any]:
    """Return what `ResumeCheckpoints` stored in a checkpoint; raises UserError if it is invalid."""
    return read_checkpoint(path)[RECORD]


def find_restart(run: RunDirectory, config: Config, *, rename_invalid: bool = True) -> Restart:
    """Return the run's newest valid checkpoint, or `Restart()` if there is none.

    With `rename_invalid`, for which the caller holds the run's lock, invalid files are renamed to
    *.unusable and the reason is printed to standard error.
    """
    classifier = classifier_shapes(config, image_source_of(config))
    restart = Restart()
    for path in (run.best_checkpoint, run.previous_checkpoint, run.last_checkpoint):  # newest last
        if not path.exists():
            continue
        try:
            checkpoint = read_checkpoint(path)
            record = checkpoint[RECORD]
            _check_config(path, record["config"], config)
            check_fits(checkpoint, classifier, path)
        except UserError as error:
            if not rename_invalid:
                continue
            unusable = path.with_name(f"{path.name}.unusable")
            path.replace(unusable)
            print(f"{error} It was renamed to {unusable.name} and is not used.", file=sys.stderr)
            continue
        if record.get(IS_RESUMABLE, True):
            restart = Restart(path, record, same_run=True)
    return restart


def find_best(run: RunDirectory) -> tuple[str, int]:
    """Return the run's best checkpoint and its epoch, from 1; raises UserError if it is missing."""
    if not run.best_checkpoint.exists():
        raise UserError(
            f"Expected the best epoch in {run.best_checkpoint}, but there is no such file, and "
            f"training has ended; delete {run.checkpoint_dir} and resume the run: it starts over."
        )
    record = read_record(run.best_checkpoint)
    return str(run.best_checkpoint), record["epochs_done"] + 1


def _check_config(path: Path, found: Config, expected: Config) -> None:
    changed = [k for k in differences(found, expected) if not may_change(k, found, expected)]
    if changed:
        raise UserError(
            f"Expected a checkpoint of this run, but {path} belongs to another configuration "
            f"({', '.join(changed[:5])})."
        )


def open_run(run: RunDirectory, config: Config) -> Restart | None:
    """Create a new run, or find where a stopped one resumes; return None if it is finished.

    The caller holds the run's lock.
    """
    before = run.status
    continued = Path(config["ckpt_path"]) if config["ckpt_path"] else None
    source = continued or source_of(config)
    if not run.exists:
        restart = restart_from(continued) if continued else Restart()
        run.create(config)
        run.write_status("running", source_digest=digest_of_file(source) if source else None)
        keep_teachers(run, config, restart.record)
        return restart
    recorded = run.config
    check_resumable(recorded, config, f"the run in {run.path}", run.path)
    if is_trained(run, config):
        check_result(run)
        if is_done(run, config):
            return None
    if before.get("state") == "running":
        print(
            f"Process {before['process']} on {before['host']} was training this run and ended "
            "without recording why."
        )
    restart = find_restart(run, config)
    if restart.checkpoint is None and source:
        check_source(run, source)
        restart = restart_from(continued) if continued else restart
    if restart.same_run:
        check_recorded_files(run, restart.record)
    if not is_trained(run, config):
        keep_teachers(run, config, restart.record)
    run.rewind(restart.record["event_files"] if restart.same_run else {})
    if config != recorded or not run.has_config_digest:
        run.write_config(config)
    run.write_status("running")
    return restart


def is_trained(run: RunDirectory, config: Config) -> bool:
    """Return whether a run is finished and `config` asks for no more epochs."""
    more_epochs = config["trainer"]["max_epochs"] > run.config["trainer"]["max_epochs"]
    return run.status.get("state") == "finished" and not more_epochs


def is_done(run: RunDirectory, config: Config) -> bool:
    """Return whether nothing is left to do: a run is trained and, if `config` says so, tested."""
    is_tested = run.is_complete and (not config["test"] or "test/accuracy" in run.metrics)
    return is_tested and is_trained(run, config)


def restart_from(source: Path) -> Restart:
    """Return where a new run starts, from a checkpoint of another: without its elapsed time."""
    record = read_record(source)
    kept = ("metrics", "environment", "epochs_done", "steps_done", DIGESTS)
    return Restart(source, {key: record[key] for key in kept if key in record})


def restart_from_environment(run: RunDirectory, config: Config) -> Restart:
    """Return where this run starts or resumes, in a process other than its first."""
    checkpoint = os.environ.get(CHECKPOINT_VARIABLE)
    if checkpoint is None:  # torchrun or SLURM started all of them at once
        return find_restart(run, config, rename_invalid=False)
    if not checkpoint:
        return Restart()
    return Restart(Path(checkpoint), read_record(Path(checkpoint)), same_run=True)
