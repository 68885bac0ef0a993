"""Batched augmentation on the batch's device, with independent random values for every image.

    augment = Augment(flip=0.5, shift=2)
    augment(images, generator)  # (B, 28, 28) uint8 -> (B, 28, 28) uint8

The functions are deterministic; `Augment` draws their random arguments.
"""

from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Generator, Tensor

Probability = Annotated[float, Field(ge=0, le=1)]
NumPixels = Annotated[int, Field(ge=0, lt=28)]


def flip_horizontally(images: Tensor, flipped: Tensor) -> Tensor:
    """Mirror left to right those images (B, H, W) whose entry in `flipped` (B,) bool is true."""
    return torch.where(flipped[:, None, None], images.flip(-1), images)


def shift_pixels(images: Tensor, down: Tensor, right: Tensor, limit: int) -> Tensor:
    """Shift each image (B, H, W) by `down` and `right` pixels, (B,) each, in -limit..limit.

    Pixels that enter from outside the image are black, the data set's background.
    """
    num_images, height, width = images.shape
    padded = F.pad(images, (limit, limit, limit, limit))  # (B, H + 2 limit, W + 2 limit)
    rows = (limit - down)[:, None] + torch.arange(height, device=images.device)  # (B, H)
    columns = (limit - right)[:, None] + torch.arange(width, device=images.device)  # (B, W)
    batch = torch.arange(num_images, device=images.device)
    return padded[batch[:, None, None], rows[:, :, None], columns[:, None, :]]


def erase_square(images: Tensor, top: Tensor, left: Tensor, size: int) -> Tensor:
    """Set a square of `size` x `size` pixels to black in each image (B, H, W).

    The upper left corner is at (`top`, `left`), (B,) each, and may be outside the image, so that
    edges are erased as often as the middle: Cutout, DeVries and Taylor 2017,
    https://arxiv.org/abs/1708.04552
    """
    rows = torch.arange(images.shape[1], device=images.device) - top[:, None]  # (B, H)
    columns = torch.arange(images.shape[2], device=images.device) - left[:, None]  # (B, W)
    row_inside = (rows >= 0) & (rows < size)
    column_inside = (columns >= 0) & (columns < size)
    return images.masked_fill(row_inside[:, :, None] & column_inside[:, None, :], 0)


class Augment:
    """Apply a random horizontal flip, shift and erasure, in this order.

    Args:
        flip: probability of a left-right flip.
        shift: maximum shift in pixels, vertically and horizontally; 0 disables shifting.
        erase: side of the erased square in pixels; 0 disables erasing.
    """

    def __init__(
        self, *, flip: Probability = 0.0, shift: NumPixels = 0, erase: NumPixels = 0
    ) -> None:
        self.flip = flip
        self.shift = shift
        self.erase = erase

    def __call__(self, images: Tensor, generator: Generator) -> Tensor:
        """Return augmented images (B, H, W); `generator` must be on their device.

        The input is never modified; it is returned as is if every augmentation is disabled.
        """
        num_images, height, width = images.shape

        def draw(low: int, high: int) -> Tensor:  # (B,) int64 in low..high
            size = (num_images,)
            return torch.randint(low, high + 1, size, generator=generator, device=generator.device)

        if self.flip:
            chances = torch.rand(num_images, generator=generator, device=generator.device)
            images = flip_horizontally(images, chances < self.flip)
        if self.shift:
            down, right = draw(-self.shift, self.shift), draw(-self.shift, self.shift)
            images = shift_pixels(images, down, right, self.shift)
        if self.erase:
            top, left = draw(1 - self.erase, height - 1), draw(1 - self.erase, width - 1)
            images = erase_square(images, top, left, self.erase)
        return images
