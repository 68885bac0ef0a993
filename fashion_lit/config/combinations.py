"""Refuse settings that are valid individually but not in combination."""

from fashion_lit.config.settings import Config
from fashion_lit.config.trainer import check_plateau, check_trainer
from fashion_lit.data.classes import class_tags
from fashion_lit.data.mixing import check_mixing
from fashion_lit.data.sources.source import ImageSource
from fashion_lit.data.split import check_sizes, number_of
from fashion_lit.errors import UserError
from fashion_lit.models.build import check_model
from fashion_lit.models.schedules import check_schedule
from fashion_lit.parts.kinds import is_plateau, needs_no_trust, part_class
from fashion_lit.parts.trust import is_import_path
from fashion_lit.text import did_you_mean, shorten


def check_combinations(config: Config, source: ImageSource) -> None:
    """Raise UserError for settings that are valid individually but not together, or with `source`.

    They fit the schema, and describe the image source `source`.
    """
    data, model, trainer = config["data"], config["model"], config["trainer"]
    num_epochs, num_test = trainer["max_epochs"], source.num_test
    num_val = number_of(data["val_size"], source.num_train)
    num_held_out = 0 if data["validate_on_test"] else num_val
    num_train = check_sizes(source.num_train, num_held_out, data.get("train_size"))
    for key in ("test", "data.validate_on_test"):
        if not num_test and (config["test"] if key == "test" else data["validate_on_test"]):
            raise UserError(
                f"Expected test images for {key}=true, but {source.title} has none; set "
                f"{key}=false."
            )
    if num_train < len(source.class_names):
        raise UserError(
            f"Expected an image to train on of each of the {len(source.class_names)} classes of "
            f"{source.title}, but got {num_train} in all; raise data.train_size, or lower "
            "data.val_size."
        )
    check_mixing(config["augment"], num_epochs)
    check_callbacks(config, source)
    if data["batch_size"] > num_train:
        raise UserError(
            f"Expected `data.batch_size` to be at most the {num_train:,} training images, but got "
            f"{data['batch_size']:,}."
        )
    check_model(model)
    num_ranks = trainer["devices"] if isinstance(trainer.get("devices"), int) else 1
    num_images = num_train // max(1, num_ranks)
    single_last = data["batch_size"] > 1 and num_images % data["batch_size"] == 1
    num_val = num_test if data["validate_on_test"] else num_val
    num_batches = {"train": -(-(num_images - single_last) // data["batch_size"])}
    num_batches["val"] = -(-num_val // data["eval_batch_size"])
    check_schedule(config["scheduler"], num_epochs, num_batches["train"] * num_epochs)
    name = config["scheduler"]["name"]
    if name == "plateau" or (is_import_path(name) and is_plateau(part_class("scheduler", name))):
        check_plateau(trainer)
    if config["test"]:
        num_batches["test"] = -(-num_test // data["eval_batch_size"])
    check_trainer(trainer, num_batches)


def check_callbacks(config: Config, source: ImageSource) -> None:
    """Raise UserError for callbacks of Lightning that wait for what never comes, metric or epoch.

    Beside a callback of the user, which may log more, any metric is accepted.
    """
    parts = config.get("callbacks") or {}
    scores = ("precision", "recall", "f1")
    known = [f"{split}/{name}" for split in ("val", "train") for name in ("accuracy", "loss")]
    known += [f"val/{score}/{tag}" for score in scores for tag in class_tags(source.class_names)]
    known.append("train/images_per_second")
    is_own = any(not needs_no_trust("callbacks", part["name"]) for part in parts.values())
    num_epochs = config["trainer"]["max_epochs"]
    for key, part in parts.items():
        metric, start = part.get("monitor"), part.get("swa_epoch_start")
        if isinstance(metric, str) and metric not in known and not is_own:
            raise UserError(
                f"Expected `callbacks.{key}.monitor` to be a metric that a run logs, but got "
                f"{shorten(repr(metric))}{did_you_mean(metric, known) or '.'}"
            )
        if isinstance(start, int) and start > num_epochs:
            raise UserError(
                f"Expected `callbacks.{key}.swa_epoch_start` to be at most trainer.max_epochs="
                f"{num_epochs}, but got {start}: no epoch would be averaged."
            )
