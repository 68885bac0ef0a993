"""Which data a run was trained on: its data.json, and whether two runs have the same data.

    identity = identity_of(run.config, run.data)
    identity.text  # "cats and dogs (800 images to train, 200 to test, 0f1e2d3c4b5a)"

Runs of earlier versions have no data.json. Fashion-MNIST, whose files are verified, and synthetic
images, which are drawn, are known by the settings alone. This module does not import torch.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fashion_lit.errors import UserError
from fashion_lit.runs.records import digest_of_object, is_finite_number, read_object
from fashion_lit.text import one_line, shorten

if TYPE_CHECKING:
    from fashion_lit.data.datamodule import FashionMNISTDataModule

DATA = "data"  # the key of a checkpoint's record that has what data.json has
DIGEST = "sha256"  # the key of data.json that holds the digest of the others
KEYS = ("title", "class_names", "num_train", "num_test", "image_size", "channels", "mean", "std")
DECISIVE = {  # of the sources whose settings alone decide what the images are
    "fashion_mnist": (),
    "synthetic": ("num_train", "num_test", "drawing_seed"),
}
NUM_DIGITS = 12  # of a fingerprint, in messages


@dataclass(frozen=True)
class DataIdentity:
    """What tells the data of one run from those of others.

    Args:
        key: equal for the same data.
        text: their name and size, for messages.
    """

    key: str
    text: str


def describe_data(datamodule: "FashionMNISTDataModule") -> dict[str, Any]:
    """Return what data.json records of a data module that has loaded its images."""
    source = datamodule.source
    return {
        "title": source.title,
        "class_names": list(datamodule.class_names),
        "num_train": source.num_train,
        "num_test": source.num_test,
        "image_size": source.image_size,
        "channels": datamodule.channels,
        "mean": list(datamodule.mean),
        "std": list(datamodule.std),
        "fingerprint": datamodule.fingerprint,
    }


def text_of_data(data: Mapping[str, Any]) -> str:
    """Return the text of data.json, with a digest."""
    content = dict(data) | {DIGEST: digest_of_object(data)}
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def read_data(path: Path) -> dict[str, Any]:
    """Read data.json; raises UserError unless it is what a run wrote."""
    data = read_object(path)
    if data.pop(DIGEST, None) != digest_of_object(data):
        raise UserError(f"Expected {path} as the run wrote it, but it was changed since.")
    if (problem := find_problem_of_data(data)) is not None:
        raise UserError(f"Expected a record of data in {path}, but {problem}.")
    return data


def find_problem_of_data(data: object) -> str | None:
    """Describe what no run can have recorded of its data; None if there is nothing."""
    if not isinstance(data, Mapping) or set(data) != {*KEYS, "fingerprint"}:
        return "it has other keys"
    names, channels = data["class_names"], data["channels"]
    counts = (data["num_train"], data["num_test"], data["image_size"])
    if not all(isinstance(n, int) and not isinstance(n, bool) and 0 <= n < 2**63 for n in counts):
        return "its numbers of images or pixels are none"
    if not (isinstance(names, list) and len(names) > 1 and all(isinstance(n, str) for n in names)):
        return "its names of classes are not two texts or more"
    for values in (data["mean"], data["std"]):
        if not isinstance(values, list) or not all(map(is_finite_number, values)):
            return "its means or deviations are no numbers"
        if channels not in (1, 3) or len(values) != channels:
            return "its channels are not 1 or 3"
    texts = (data["title"], data["fingerprint"])
    return None if all(isinstance(text, str) for text in texts) else "its title is no text"


def is_known_by_settings(config: Mapping[str, Any]) -> bool:
    """Return whether a run's settings alone decide what its images are.

    The fingerprints of such data are not compared: drawn images may differ in the last bit of a
    pixel on another machine.
    """
    return config.get("data", {}).get("name") in DECISIVE


def identity_of(
    config: Mapping[str, Any], data: Mapping[str, Any] | None = None
) -> DataIdentity | None:
    """Return the identity of a run's data; None if it cannot be known.

    Args:
        config: the run's settings.
        data: what its data.json or a checkpoint records; None if there is none.
    """
    settings = config.get("data", {})
    name = settings.get("name")
    if name in DECISIVE:
        values = {key: settings.get(key, 0) for key in DECISIVE[name]}
        text = "synthetic garments" if values else "Fashion-MNIST"
        listed = ", ".join(f"{key}={value}" for key, value in values.items())
        return DataIdentity(f"{name} {listed}", f"{text} ({listed})" if listed else text)
    return None if data is None else DataIdentity(data["fingerprint"], summary(data))


def summary(data: Mapping[str, Any]) -> str:
    """Return the title, the numbers of images and the fingerprint of recorded data."""
    numbers = f"{data['num_train']:,} images to train, {data['num_test']:,} to test"
    title = shorten(one_line(data["title"]))
    return f"{title} ({numbers}, {data['fingerprint'][:NUM_DIGITS]})"


def check_same_data(
    recorded: Mapping[str, Any], found: Mapping[str, Any], owner: str, remedy: str
) -> None:
    """Raise UserError if the data found are not the recorded ones.

    Args:
        recorded: what a run or checkpoint recorded of its data.
        found: that of the data now.
        owner: who recorded it, in the message.
        remedy: what to do, in the message.
    """
    if recorded["fingerprint"] != found["fingerprint"]:
        raise UserError(
            f"Expected the data that {owner} was trained on, {summary(recorded)}, but the data now "
            f"are {summary(found)}; {remedy}."
        )


def check_one_data_set(runs: Iterable[tuple[str, DataIdentity | None]]) -> None:
    """Raise UserError if runs, given as (name, data), have different data.

    Those whose data are not known are left out.
    """
    groups: dict[str, list[tuple[str, str]]] = {}
    for name, identity in runs:
        if identity is not None:
            groups.setdefault(identity.key, []).append((name, identity.text))
    if len(groups) > 1:
        parts = []
        for members in groups.values():
            (name, text), more = members[0], len(members) - 1
            verb = f"and {more:,} more are" if more else "is"
            parts.append(f"{name} {verb} on {text}")
        raise UserError(
            f"Expected runs on the same data to compare, but {', '.join(parts)}; name runs of one "
            "data set alone, or keep the runs of each in a folder of its own."
        )
