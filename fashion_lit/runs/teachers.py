"""Teachers, trained runs that a run learns from: `teacher=RUN`, or `teacher=[RUN,FILE]` for two.

A run copies their checkpoints when it begins and uses the copies from then on, so that it does not
matter what becomes of the other runs. The copies are deleted when the run has finished.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from fashion_lit.config.schema import check_recorded
from fashion_lit.config.settings import Config, network_name
from fashion_lit.errors import UserError
from fashion_lit.files import digest_of_file, write_atomically
from fashion_lit.models.build import build_classifier
from fashion_lit.models.distillation import Teacher
from fashion_lit.runs.data_records import DATA, identity_of
from fashion_lit.runs.directory import RunDirectory, run_of
from fashion_lit.runs.initial_weights import saw_validation_images
from fashion_lit.runs.integrity import RECORD, check_fits, read_checkpoint

DIGESTS = "teacher_digests"  # in the record of a checkpoint: the SHA-256 of each teacher's file


def copies_in(run: RunDirectory, config: Config) -> list[Path]:
    """Return the files of a run that hold its teachers; [] if `teacher` is null."""
    numbers = range(len(config.get("teacher") or ()))
    return [run.checkpoint_dir / copy_name(number) for number in numbers]


def copy_name(number: int) -> str:
    """Return the name of a teacher's file in a run."""
    return f"teacher_{number}.ckpt"


def checkpoint_of(place: str) -> Path:
    """Return the checkpoint that a part of `teacher` names, a run's best or a file.

    Raises UserError if there is none.
    """
    path = Path(place)
    if not path.exists():
        raise UserError(f"Expected a run or a checkpoint for `teacher`, but there is no {path}.")
    if not path.is_dir():
        return path
    best = run_of(path).best_checkpoint
    if not best.is_file():
        raise UserError(
            f"Expected a run with a checkpoint for `teacher`, but {path} has no best epoch yet."
        )
    return best


def load_teacher(path: Path) -> Teacher:
    """Load a teacher from a checkpoint; raises UserError if it cannot be used."""
    return build_teacher(read_checkpoint(path), path)


def build_teacher(checkpoint: Mapping[str, Any], path: Path) -> Teacher:
    """Build the network of a checkpoint, the averaged one if it has one.

    Raises UserError if the settings in it do not describe its weights; `path` is its file.
    """
    config = checkpoint[RECORD]["config"]
    check_recorded(config, path)
    known = checkpoint.get("hyper_parameters", {})
    decided = {key: known[key] for key in ("class_names", "in_channels") if key in known}
    with torch.random.fork_rng(devices=[]):  # weights are drawn before they are replaced
        classifier = build_classifier(config, **decided)
    check_fits(checkpoint, classifier, path)
    classifier.load_state_dict(checkpoint["state_dict"])
    data = {**config["data"], **checkpoint.get("FashionMNISTDataModule", {})}
    keys = ("image_size", "normalize", "mean", "std")  # earlier versions recorded the first two
    return Teacher(classifier.evaluated, **{key: data[key] for key in keys if key in data})


def check_teachers(config: Config, record: Mapping[str, Any]) -> None:
    """Raise UserError unless a new run can learn from the teachers that its settings name.

    Args:
        config: checked settings.
        record: that of the checkpoint that the run continues, with the same teachers; or {}.
    """
    digests: dict[str, str] = {}
    for number, place in enumerate(config.get("teacher") or ()):
        source = find_source(config, number, record)
        if source is None:
            raise UserError(
                f"Expected the teacher that this training began with in {place}, but it is gone or "
                "was changed since; restore it, or start another run."
            )
        checkpoint = read_checkpoint(source)
        build_teacher(checkpoint, source)
        theirs = identity_of(checkpoint[RECORD]["config"], checkpoint[RECORD].get(DATA))
        ours = identity_of(config)  # None for data that have to be loaded; they are compared then
        if ours is not None and (theirs is None or theirs.key != ours.key):
            raise UserError(
                f"Expected a teacher that was trained on {ours.text}, but {place} was trained on "
                f"{theirs.text if theirs else 'other data'}; choose another teacher."
            )
        digest = digest_of_file(source)
        if digest in digests:
            raise UserError(
                f"Expected each teacher once, but {digests[digest]} and {place} are the same; "
                "leave out one of them."
            )
        digests[digest] = place


def records_of_sources(config: Config) -> dict[str, tuple[Mapping[str, Any] | None, str]]:
    """Return which data the checkpoints recorded that a new run continues and learns from.

    By their names in a message, each with what to do if the run's data are others; None for one
    that recorded none.
    """
    records = {}
    if config["ckpt_path"] is not None:
        recorded = read_checkpoint(Path(config["ckpt_path"]))[RECORD].get(DATA)
        remedy = "restore them, or start from its weights alone with init_from"
        records[f"the checkpoint {config['ckpt_path']}"] = (recorded, remedy)
    for place in config.get("teacher") or ():
        with suppress(UserError):  # gone, but there may be a copy, or it is reported later
            recorded = read_checkpoint(checkpoint_of(place))[RECORD].get(DATA)
            records[f"the teacher {place}"] = (recorded, "choose another teacher")
    return records


def find_source(config: Config, number: int, record: Mapping[str, Any]) -> Path | None:
    """Return the checkpoint to copy a teacher from.

    If the record has its digest, the file must have the same one: None if there is none. A copy of
    it may be beside the checkpoint that the run continues. Without a digest, raises UserError if
    there is no file.
    """
    place = config["teacher"][number]
    if DIGESTS not in record:
        return checkpoint_of(place)
    found = []
    with suppress(UserError):
        found.append(checkpoint_of(place))
    if config["ckpt_path"]:
        found.append(Path(config["ckpt_path"]).with_name(copy_name(number)))
    expected = record[DIGESTS][number]
    return next((p for p in found if p.is_file() and digest_of_file(p) == expected), None)


def keep_teachers(run: RunDirectory, config: Config, record: Mapping[str, Any]) -> None:
    """Copy the teachers' checkpoints into a run, unless it has them; the caller holds its lock.

    Raises UserError if a copy was lost, and the teacher itself is gone or was changed.

    Args:
        run: the run.
        config: its settings.
        record: that of the checkpoint that the run goes on from; {} if it begins.
    """
    for number, copy in enumerate(copies_in(run, config)):
        if _is_usable(copy, record[DIGESTS][number] if DIGESTS in record else None):
            continue
        source = find_source(config, number, record)
        if source is None:
            raise UserError(
                f"Expected a teacher of this run in {copy}, but the file is missing or was "
                f"changed, and {config['teacher'][number]} is gone or was changed, too; restore "
                "one of them, or start another run."
            )
        if copy.exists() or "event_files" in record:
            print(f"{copy} is missing or damaged; it is copied again from {source}.")
        copy.parent.mkdir(exist_ok=True)
        write_atomically(copy, source.read_bytes())


def _is_usable(path: Path, digest: str | None) -> bool:
    """Return whether a file has a digest or, without one, is an intact checkpoint."""
    if not path.is_file():
        return False
    if digest is not None:
        return digest_of_file(path) == digest
    try:
        return bool(read_checkpoint(path))
    except UserError:
        return False


def describe_teachers(copies: Sequence[Path], config: Config) -> list[str]:
    """Return a line on each teacher of a run, with a warning if it saw the validation images."""
    lines = []
    for copy, place in zip(copies, config["teacher"], strict=True):
        record = read_checkpoint(copy)[RECORD]
        lines.append(
            f"learns from the {network_name(record['config'])} after {record['steps_done']:,} "
            f"steps in {place}"
        )
        if saw_validation_images(record["config"]["data"], config["data"]):
            lines.append(
                "Warning: this teacher trained on some of the validation images of this run, "
                "because the split of data differs, so the figures below are optimistic."
            )
    return lines
