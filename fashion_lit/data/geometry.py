"""Where pixels are: mirrored, shifted and affinely mapped images, and boxes in them.

    maps = affine_maps(torch.full((B,), 15.0), torch.ones(B), torch.zeros(B), torch.zeros(B))
    resample(images, maps)  # (B, H, W) uint8 -> (B, H, W) uint8, rotated by 15 degrees

Every function works on a whole batch with separate arguments for each image, and is deterministic.
Images are (B, H, W) or, in colour, (B, 3, H, W); all channels of an image move alike.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

SHIFTS = ((0, 0), (1, 0), (-1, 0), (0, 1), (0, -1))  # of the views, pixels down and right


def over_pixels(values: Tensor, images: Tensor) -> Tensor:
    """Return values (B,) as (B, 1, …), which are broadcast over the pixels of their images."""
    return values.view(-1, *[1] * (images.ndim - 1))


def flip_horizontally(images: Tensor, flipped: Tensor) -> Tensor:
    """Mirror left to right those images whose entry in `flipped` (B,) bool is true."""
    return torch.where(over_pixels(flipped, images), images.flip(-1), images)


def shift_pixels(images: Tensor, down: Tensor, right: Tensor, limit: int) -> Tensor:
    """Shift each image by `down` and `right` pixels, (B,) each, in -limit..limit.

    Pixels that enter from outside the image are black, the background of Fashion-MNIST.
    """
    height, width = images.shape[-2:]
    padded = F.pad(images, (limit, limit, limit, limit))  # (B, …, H + 2 limit, W + 2 limit)
    windows = padded.unfold(-2, height, 1).unfold(-2, width, 1)  # a view, (B, …, ., ., H, W)
    batch = torch.arange(len(images), device=images.device)
    if images.ndim == 4:
        return windows[batch, :, limit - down, limit - right]
    return windows[batch, limit - down, limit - right]


def affine_maps(angle: Tensor, factor: Tensor, shear_x: Tensor, shear_y: Tensor) -> Tensor:
    """Return the maps (B, 2, 2) float32 from output to input coordinates (x, y) about the centre.

    The same maps as torchvision's `affine`, which first shears, then rotates and scales.

    Args:
        angle: clockwise rotations in degrees, (B,).
        factor: enlargements, (B,) and positive.
        shear_x: shears along the horizontal axis in degrees, (B,), above -90 and below 90.
        shear_y: the same along the vertical axis.
    """
    angle, shear_x, shear_y = (torch.deg2rad(part) for part in (angle, shear_x, shear_y))
    cosine = (angle - shear_y).cos() / shear_y.cos()
    sine = (angle - shear_y).sin() / shear_y.cos()
    across = cosine * shear_x.tan() + angle.sin()
    down = angle.cos() - sine * shear_x.tan()
    rows = torch.stack([down, across, -sine, cosine], 1).view(-1, 2, 2)
    return rows / factor[:, None, None]


def resample(
    images: Tensor, maps: Tensor, right: Tensor | None = None, down: Tensor | None = None
) -> Tensor:
    """Map images, uint8, by bilinear interpolation, rounded to uint8; black outside.

    Args:
        images: the images.
        maps: (B, 2, 2) float32, as `affine_maps` returns them.
        right: shifts to the right in pixels after the map, (B,), or None. With another map than the
            identity they are along the axes of the input.
        down: the same downwards.
    """
    num_images, (height, width) = len(images), images.shape[-2:]
    x = torch.arange(width, device=images.device) - (width - 1) / 2  # (W,) from the centre
    y = torch.arange(height, device=images.device) - (height - 1) / 2  # (H,)
    # (B, 2, W) and (B, 2, H): what a column, and a row, contribute to both input coordinates
    of_columns, of_rows = maps[:, :, :1] * x, maps[:, :, 1:] * y
    if right is not None and down is not None:
        of_columns = of_columns - torch.stack([right, down], 1)[:, :, None]
    grid = torch.empty(num_images, height, width, 2, device=images.device)
    for axis, length in enumerate((width, height)):  # -1 and 1 are the outermost pixels
        part = 2 / (length - 1)
        across, along = of_columns[:, axis, None, :] * part, of_rows[:, axis, :, None] * part
        torch.add(across, along, out=grid[..., axis])
    channels = images if images.ndim == 4 else images[:, None]
    sampled = F.grid_sample(channels.float(), grid, align_corners=True)
    return sampled.view_as(images).round_().to(torch.uint8)


def inside_boxes(
    images: Tensor, top: Tensor, left: Tensor, height: Tensor, width: Tensor
) -> Tensor:
    """Return which pixels are in their image's box, (B, H, W) or, in colour, (B, 1, H, W) bool.

    The upper left corners are at (`top`, `left`), (B,) each, and may be outside the image.
    """
    height_of_images, width_of_images = images.shape[-2:]
    rows = torch.arange(height_of_images, device=images.device) - top[:, None]  # (B, H)
    columns = torch.arange(width_of_images, device=images.device) - left[:, None]  # (B, W)
    row_inside = (rows >= 0) & (rows < height[:, None])
    column_inside = (columns >= 0) & (columns < width[:, None])
    inside = row_inside[:, :, None] & column_inside[:, None, :]
    return inside[:, None] if images.ndim == 4 else inside


def erase_square(images: Tensor, top: Tensor, left: Tensor, size: int) -> Tensor:
    """Set a square of `size` x `size` pixels to black in each image.

    The upper left corner is at (`top`, `left`), (B,) each, and may be outside the image, so that
    edges are erased as often as the middle: Cutout, DeVries and Taylor 2017,
    https://arxiv.org/abs/1708.04552
    """
    side = torch.full_like(top, size)
    return images.masked_fill(inside_boxes(images, top, left, side, side), 0)


def tta_views(*, mirrored: bool) -> list[tuple[bool, int, int]]:
    """Return the views for test-time augmentation, as arguments (mirrored, down, right).

    All SHIFTS and, if training used mirrored images, their mirror images: a network that was
    trained without them becomes less accurate with them.
    """
    mirrors = (False, True) if mirrored else (False,)
    return [(mirror, down, right) for mirror in mirrors for down, right in SHIFTS]


def apply_view(images: Tensor, mirrored: bool, down: int, right: int) -> Tensor:
    """Return images (B, H, W) or (B, 3, H, W) uint8, mirrored if asked and shifted by a pixel."""
    if (mirrored, down, right) == (False, 0, 0):
        return images
    flips, *moves = (
        torch.full((len(images),), value, device=images.device) for value in (mirrored, down, right)
    )
    return shift_pixels(flip_horizontally(images, flips), *moves, limit=1)
