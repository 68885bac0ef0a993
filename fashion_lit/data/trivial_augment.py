"""TrivialAugment: one random operation of random strength on each image.

    operation = torch.full((B,), OPERATIONS.index("rotate"))
    apply_operations(images, operation, torch.full((B,), 0.5))  # each rotated by 67.5 degrees

Müller and Hutter 2021, https://arxiv.org/abs/2103.10158, with the "wide" ranges. Grey images have
no colour to change, so "color" is an operation on colour images alone. The paper shifts its images
of 32 pixels by up to 32 pixels; here, as far, by up to an image's side.
"""

import torch
from torch import Tensor

from fashion_lit.data import tones
from fashion_lit.data.geometry import affine_maps, over_pixels, resample

OPERATIONS = (
    "identity",
    "shear_x",
    "shear_y",
    "translate_x",
    "translate_y",
    "rotate",
    "brightness",
    "contrast",
    "sharpness",
    "posterize",
    "solarize",
    "auto_contrast",
    "equalize",
    "color",  # the last, which grey images lack
)
NUM_STRENGTHS = 31  # from none to the greatest, in equal steps
MAX_SLOPE = 0.99  # of a shear; also the greatest change of brightness, contrast, … and colour
MAX_ANGLE = 135.0  # degrees
MAX_LOST_BITS = 6  # of eight


def num_operations(images: Tensor) -> int:
    """Return how many operations there are for images (B, H, W) or, in colour, (B, 3, H, W)."""
    return len(OPERATIONS) if images.ndim == 4 else len(OPERATIONS) - 1


def apply_operations(images: Tensor, operation: Tensor, magnitude: Tensor) -> Tensor:
    """Apply one operation to each image, (B, H, W) or, in colour, (B, 3, H, W), uint8.

    All operations are computed for all images, because to select images a GPU would have to wait.

    Args:
        images: the images.
        operation: places in OPERATIONS, (B,) int64.
        magnitude: strengths (B,) float32 in -1..1. The sign is that of a shear, shift or rotation
            and of a change of brightness, contrast, sharpness or colour; the others ignore it.
    """
    of = {name: operation == place for place, name in enumerate(OPERATIONS)}
    none = torch.zeros_like(magnitude)

    def where(name: str, values: Tensor, otherwise: Tensor = none) -> Tensor:
        return torch.where(of[name], values, otherwise)

    slopes = torch.rad2deg((MAX_SLOPE * magnitude).atan())
    maps = affine_maps(
        where("rotate", MAX_ANGLE * magnitude),
        torch.ones_like(magnitude),
        where("shear_x", slopes),
        where("shear_y", slopes),
    )
    right = where("translate_x", (images.shape[-1] * magnitude).trunc())
    down = where("translate_y", (images.shape[-2] * magnitude).trunc())
    moved = resample(images, maps, right, down)
    changed = tones.look_up(moved, _tables(moved, of, magnitude))
    if images.ndim == 4:
        changed = tones.saturate(changed, 1 + where("color", MAX_SLOPE * magnitude))
    return tones.sharpen(changed, 1 + where("sharpness", MAX_SLOPE * magnitude))


def _tables(images: Tensor, of: dict[str, Tensor], magnitude: Tensor) -> Tensor:
    """Return the table of each image's operation, the identity for other kinds.

    They are (B, 256) uint8 or, of colour images, (B, 3, 256).
    """
    factor, strength = 1 + MAX_SLOPE * magnitude, magnitude.abs()
    found = {
        "brightness": tones.brightness(factor),
        "contrast": tones.contrast(images, factor),
        "posterize": tones.posterize(8 - (MAX_LOST_BITS * strength).round()),
        "solarize": tones.solarize((tones.NUM_GREYS - 1) * (1 - strength)),
        "auto_contrast": tones.auto_contrast(images),
        "equalize": tones.equalize(images),
    }
    shape = (*images.shape[:-2], tones.NUM_GREYS)
    tables = tones.rounded(tones.greys(images.device)).expand(shape)
    for name, table in found.items():
        table = table[:, None] if table.ndim < len(shape) else table  # the same for all channels
        tables = torch.where(over_pixels(of[name], tables), table, tables)
    return tables
