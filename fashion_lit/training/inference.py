"""Predict the class probabilities of a split's images, or of others.

predictions = predict(load_run("runs/first"), "test")  # probabilities (N, number of classes), …
"""

import copy
from collections.abc import Sequence
from typing import Any, get_args, overload

import lightning as L
import numpy as np
import torch
from torch import Tensor

from fashion_lit.config.settings import Config
from fashion_lit.data.geometry import apply_view, tta_views
from fashion_lit.errors import UserError
from fashion_lit.evaluation.predictions import Predictions, Split
from fashion_lit.text import shorten
from fashion_lit.training.device import choose_precision, set_tf32
from fashion_lit.training.loading import Run
from fashion_lit.training.process import as_in_new_process, silence_known_messages


def choose_splits(config: Config, wanted: Split | None) -> list[Split]:
    """Return the splits to evaluate; by default a run with test=false keeps its test set closed."""
    if wanted is not None:
        return [wanted]
    if config["data"]["validate_on_test"]:
        return ["test"]
    return ["val", "test"] if config["test"] else ["val"]


@overload
def predict(run: Run, images: Split = "val", *, augmented: bool = False) -> Predictions: ...


@overload
def predict(
    run: Run, images: Tensor | np.ndarray[Any, Any], *, augmented: bool = False
) -> Tensor: ...


def predict(
    run: Run, images: Split | Tensor | np.ndarray[Any, Any] = "val", *, augmented: bool = False
) -> Predictions | Tensor:
    """Predict class probabilities, in the precision the run was trained in, on its kind of device.

    Args:
        run: what `load_run` or `train` returns.
        images: "val" or "test", a split of the run's data; or images of your own, uint8 and as
            large as those that the run was trained on: (N, H, W), or (N, 3, H, W) in colour.
        augmented: return the mean over the `tta_views` of each image (test-time augmentation).

    Returns:
        The probabilities (N, number of classes) float32, on the CPU: of a split in `Predictions`,
        with its labels and images; of other images as a tensor.
    """
    if not isinstance(run, Run):
        raise UserError(f"Expected a run, as load_run returns it, but got {shorten(repr(run))}.")
    views = (
        tta_views(mirrored=bool(run.config["augment"]["flip"])) if augmented else [(False, 0, 0)]
    )
    if isinstance(images, str):
        if images not in get_args(Split):
            raise UserError(f"Expected a split, val or test, but got {images!r}.")
        pixels, labels = run.datamodule.images_of(images)
        return Predictions(probabilities(run, pixels, views), labels, pixels)
    try:
        pixels = torch.as_tensor(np.array(images) if not isinstance(images, Tensor) else images)
    except (TypeError, ValueError, RuntimeError):
        raise UserError(
            f"Expected images as a tensor or array, but got {shorten(repr(images))}."
        ) from None
    pixels = pixels.cpu()
    shape = run.image_shape
    if pixels.dtype != torch.uint8 or tuple(pixels.shape[1:]) != shape:
        wanted, given = (", ".join(map(str, ("N", *sizes))) for sizes in (shape, pixels.shape[1:]))
        raise UserError(
            f"Expected images ({wanted}) uint8, from 0 to 255, like those that the run was trained "
            f"on, but got ({given}) {str(pixels.dtype).removeprefix('torch.')}."
        )
    return probabilities(run, pixels, views)


def probabilities(run: Run, images: Tensor, views: Sequence[tuple[bool, int, int]]) -> Tensor:
    """Return the mean probabilities (N, number of classes) of views of images in main memory."""
    requested = run.config["trainer"]["precision"]
    precision, _ = choose_precision(requested, run.accelerator)
    num_batches = max(1, -(-len(images) // run.config["data"]["eval_batch_size"]))
    with as_in_new_process():
        with torch.inference_mode():
            total = torch.zeros(())
            classifier = copy.deepcopy(run.classifier).eval()
            silence_known_messages()
            set_tf32(requested, run.accelerator)
            fabric = L.Fabric(accelerator=run.accelerator, devices=1, precision=precision)  # pyright: ignore[reportArgumentType]
            module = fabric.setup_module(classifier)
            for view in views:
                batches = (part.to(fabric.device) for part in images.tensor_split(num_batches))
                inputs = (run.to_input(apply_view(batch, *view)) for batch in batches)
                logits = [module(x).float().cpu() for x in inputs]
                total = total + torch.cat(logits).softmax(1)
        return total / len(views)
