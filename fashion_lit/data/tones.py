"""How bright pixels are: tables (B, 256) of new grey values, and `look_up`, which applies them.

    look_up(images, brightness(torch.full((len(images),), 1.2)))  # (B, H, W) uint8, 20 % brighter

Images are (B, H, W) or, in colour, (B, 3, H, W), whose channels have grey values of their own. A
table costs a third of the arithmetic on 784 pixels. Functions are deterministic, have separate
arguments for each image, and compute what torchvision's functions of the same names compute for
one image, but round where torchvision truncates.
"""

import torch
from torch import Tensor

from fashion_lit.data.geometry import over_pixels

NUM_GREYS = 256
LUMA = (0.2989, 0.587, 0.114)  # shares of red, green and blue in the grey of a colour (ITU-R 601)


def look_up(images: Tensor, tables: Tensor) -> Tensor:
    """Replace each grey value of images, uint8, by that in a table.

    The tables are those of the images (B, 256) or those of their channels (B, 3, 256).
    """
    return tables.gather(-1, images.flatten(tables.ndim - 1).long()).view_as(images)


def grey(images: Tensor) -> Tensor:
    """Return images in grey, (B, H, W) float32 in 0..255; a colour's is rounded down."""
    if images.ndim == 3:
        return images.float()
    red, green, blue = images.float().unbind(1)
    return (LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue).floor_()


def greys(device: torch.device) -> Tensor:
    """Return the grey values 0 to 255, (1, 256) float32."""
    return torch.arange(NUM_GREYS, dtype=torch.float32, device=device)[None]


def rounded(values: Tensor) -> Tensor:
    """Return grey values as whole numbers in 0..255, uint8."""
    return values.clamp(0, NUM_GREYS - 1).round_().to(torch.uint8)


def brightness(factor: Tensor) -> Tensor:
    """Return the tables that multiply grey values by `factor` (B,)."""
    return rounded(greys(factor.device) * factor[:, None])


def contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Return the tables that multiply distances from an image's mean grey by `factor` (B,)."""
    means = grey(images).flatten(1).mean(1)
    return rounded(greys(factor.device) * factor[:, None] + ((1 - factor) * means)[:, None])


def posterize(num_bits: Tensor) -> Tensor:
    """Return the tables that keep the `num_bits` (B,) highest of the eight bits."""
    steps = 2.0 ** (8 - num_bits.float())[:, None]
    return rounded((greys(steps.device) / steps).floor() * steps)


def solarize(threshold: Tensor) -> Tensor:
    """Return the tables that invert grey values of at least `threshold` (B,)."""
    values = greys(threshold.device)
    return rounded(torch.where(values >= threshold[:, None], NUM_GREYS - 1 - values, values))


def auto_contrast(images: Tensor) -> Tensor:
    """Return the tables that stretch the grey values of images to 0..255; one grey value stays.

    They are (B, 256) or, of channels, (B, 3, 256).
    """
    flat = images.flatten(-2)
    low, high = flat.amin(-1).float()[..., None], flat.amax(-1).float()[..., None]
    values = greys(images.device)
    stretched = (values - low) * (NUM_GREYS - 1) / (high - low).clamp(min=1)
    return rounded(torch.where(high > low, stretched, values))


def equalize(images: Tensor) -> Tensor:
    """Return the tables that make the histograms of images nearly flat, as PIL does.

    They are (B, 256) or, of channels, (B, 3, 256). An image, or a channel, with fewer than 255
    pixels below its greatest grey value stays.
    """
    flat = images.flatten(0, -3).flatten(1)  # (N, H * W) of N images or channels
    first = NUM_GREYS * torch.arange(len(flat), device=images.device)[:, None]
    places = (flat + first).flatten()
    counts = torch.zeros(len(flat) * NUM_GREYS, device=images.device)
    counts.index_add_(0, places, counts.new_ones(()).expand(len(places)))
    counts = counts.view(len(flat), NUM_GREYS)
    greatest = flat.amax(1).long()[:, None]
    step = ((flat.shape[1] - counts.gather(1, greatest)) / (NUM_GREYS - 1)).floor()
    darker = counts.long().cumsum(1) - counts  # of whole numbers, deterministic also on a GPU
    even = darker.add_((step / 2).floor()).div_(step.clamp(min=1)).floor_()
    tables = rounded(torch.where(step > 0, even, greys(images.device)))
    return tables.view(*images.shape[:-2], NUM_GREYS)


def saturate(images: Tensor, factor: Tensor) -> Tensor:
    """Multiply by `factor` (B,) the distances of colours, (B, 3, H, W) uint8, from their grey."""
    factor = factor[:, None, None, None]
    return rounded(images.float() * factor + (1 - factor) * grey(images)[:, None])


def sharpen(images: Tensor, factor: Tensor) -> Tensor:
    """Multiply by `factor` (B,) the distances of images, uint8, from smoothed ones.

    Smoothing is the mean over 3 x 3 pixels, of which the middle one counts five times; pixels at
    the border stay.
    """
    pixels = images.float()
    sums = pixels[..., :-2, :] + pixels[..., 1:-1, :] + pixels[..., 2:, :]
    sums = sums[..., :-2] + sums[..., 1:-1] + sums[..., 2:]  # (B, …, H - 2, W - 2)
    inside = pixels[..., 1:-1, 1:-1]
    smooth = sums.add_(inside, alpha=4).div_(13).round_()
    inside.add_(smooth.sub_(inside).mul_(over_pixels(1 - factor, images)))
    return rounded(pixels)
