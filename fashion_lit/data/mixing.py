"""Mixtures of two images of a batch, whose labels are shares of classes: mixup and CutMix.

    draws = Draws(len(images), generator)
    images, labels = mix(images, labels, draws, mixup=0.2, cutmix=0, num_classes=10)
    # (B, 28, 28) uint8 and (B, 10) float32, whose rows add up to 1

Each image is mixed with the one before it in its batch, whose order is random. Images are (B, H, W)
or, in colour, (B, 3, H, W).
"""

from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fashion_lit.data.geometry import inside_boxes, over_pixels
from fashion_lit.data.randomness import Draws
from fashion_lit.data.types import Strength, pair_of
from fashion_lit.errors import UserError

NUM_QUANTILES = 4096
MAX_ALPHA = 10.0


def check_mixing(augment: Mapping[str, Any], num_epochs: int) -> None:
    """Raise UserError unless an image is mixed in at most one way, and at some time no longer."""
    mixed = [augment[key] for key in ("mixup", "cutmix") if augment.get(key)]
    probabilities = [pair_of(strength)[1] for strength in mixed]
    if sum(probabilities) > 1:
        raise UserError(
            "Expected the probabilities of `augment.mixup` and `augment.cutmix` to add up to at "
            f"most 1, because an image is mixed in one way, but got {sum(probabilities):g}; give "
            "each one, as in augment.mixup=[0.2,0.5] augment.cutmix=[1,0.5]."
        )
    until = augment.get("until_epoch")
    if until is not None and until >= num_epochs:
        raise UserError(
            f"Expected `augment.until_epoch` to be less than trainer.max_epochs={num_epochs}, so "
            f"that the last epochs are not mixed, but got {until}."
        )


def mix(
    images: Tensor,
    labels: Tensor,
    draws: Draws,
    *,
    mixup: Strength,
    cutmix: Strength,
    num_classes: int,
) -> tuple[Tensor, Tensor]:
    """Mix images by mixup or CutMix; return them and the shares of their classes.

    The shares are (B, num_classes) float32.

    Args:
        images: (B, …) uint8.
        labels: their classes, (B,) int64.
        draws: random values; those of CutMix come first.
        mixup: alpha of mixup, and its probability.
        cutmix: alpha of CutMix, and its probability. An image is mixed in at most one way.
        num_classes: number of classes.
    """
    chances = draws.uniform()
    mixed, shares = images, torch.ones_like(chances)
    is_cut = torch.zeros_like(chances, dtype=torch.bool)
    if cutmix:
        alpha, probability = pair_of(cutmix)
        is_cut = chances < probability
        mixed, shares = cut_and_mix(images, *_draw_boxes(images, draws, alpha, is_cut))
    if mixup:
        alpha, probability = pair_of(mixup)
        is_mixed = (1 - chances <= probability) & ~is_cut
        own = torch.where(is_mixed, draw_shares(images, draws, alpha), 1)
        mixed = torch.where(over_pixels(is_cut, images), mixed, mix_up(images, own))
        shares = torch.where(is_cut, shares, own)
    return mixed, mixed_labels(labels, shares, num_classes)


def _draw_boxes(images: Tensor, draws: Draws, alpha: float, is_cut: Tensor) -> list[Tensor]:
    """Return top, left, height and width (B,) int64 of CutMix's boxes; no area if not `is_cut`.

    As in the paper, the middle is uniform over the image, whose border cuts the box.
    """
    sides = (1 - draw_shares(images, draws, alpha)).sqrt() * is_cut
    lengths = [(sides * length).long() for length in images.shape[-2:]]  # height, width
    middles = [draws.integers(0, length - 1) for length in images.shape[-2:]]
    corners = [middle - side // 2 for middle, side in zip(middles, lengths, strict=True)]
    return [*corners, *lengths]


def draw_shares(images: Tensor, draws: Draws, alpha: float) -> Tensor:
    """Return draws (B,) float32 of Beta(alpha, alpha), to within one of NUM_QUANTILES quantiles."""
    return beta_quantiles(alpha, images.device)[draws.integers(0, NUM_QUANTILES - 1)]


def partners(batch: Tensor) -> Tensor:
    """Return what each image of a batch is mixed with, the images or labels before (B, ...)."""
    return batch.roll(1, 0)


def mix_up(images: Tensor, shares: Tensor) -> Tensor:
    """Return weighted means of images, uint8, and their partners, rounded to uint8.

    `shares` (B,) float32 in [0, 1] are those of the images themselves. Mixup, Zhang et al. 2017,
    https://arxiv.org/abs/1710.09412
    """
    mixed = torch.lerp(partners(images).float(), images.float(), over_pixels(shares, images))
    return mixed.round_().to(torch.uint8)


def cut_and_mix(
    images: Tensor, top: Tensor, left: Tensor, height: Tensor, width: Tensor
) -> tuple[Tensor, Tensor]:
    """Fill a box in each image with its partner; return images and shares (B,) float32.

    The boxes' upper left corners and sides are (B,) int64; a box may reach beyond the image. A
    share is the part of the image's pixels that are still its own. CutMix, Yun et al. 2019,
    https://arxiv.org/abs/1905.04899, with a box an image.
    """
    inside = inside_boxes(images, top, left, height, width)
    shares = (~inside).flatten(1).sum(1) / inside[0].numel()
    return torch.where(inside, partners(images), images), shares


def mixed_labels(labels: Tensor, shares: Tensor, num_classes: int) -> Tensor:
    """Return the shares of all classes, (B, num_classes) float32.

    `shares` (B,) are those of the images' own classes, `labels` (B,) int64.
    """
    own = labels[:, None] == torch.arange(num_classes, device=labels.device)  # one_hot waits
    return shares[:, None] * own + (1 - shares)[:, None] * partners(own)


@cache
def beta_quantiles(alpha: float, device: torch.device) -> Tensor:
    """Return the quantiles of Beta(alpha, alpha) in the middle of NUM_QUANTILES equal intervals.

    A random one of them is a draw from the distribution; torch's own sampler takes no generator.
    They are (NUM_QUANTILES,) float32 in [0, 1], in ascending order; `alpha` is at most MAX_ALPHA.
    The density is integrated up to 1/2 over u = x ** alpha, in which it has no pole, and mirrored.
    """
    ends = np.linspace(0, 0.5**alpha, 1 << 16)
    middles = (ends[1:] + ends[:-1]) / 2
    density = (1 - middles ** (1 / alpha)) ** (alpha - 1)
    reached = np.concatenate([[0.0], density.cumsum()]) / density.sum() / 2
    chances = (np.arange(NUM_QUANTILES // 2) + 0.5) / NUM_QUANTILES
    lower = np.interp(chances, reached, ends) ** (1 / alpha)
    return torch.from_numpy(np.concatenate([lower, 1 - lower[::-1]])).float().to(device)
