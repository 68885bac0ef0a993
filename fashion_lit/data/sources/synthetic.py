"""Synthetic garments: a substitute for Fashion-MNIST in tests and on machines without the data.

    train, test = SyntheticGarments(num_train=2000, num_test=500).load()

Each class is a silhouette (polygons in a unit square), drawn with a random pose (rotation, scale,
position), shade and texture, plus noise. A small CNN reaches more than 90 % accuracy in a few
epochs; a linear classifier does not.
"""

from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from pydantic import Field, NonNegativeInt
from torch import Generator, Tensor

from fashion_lit.data.randomness import generator
from fashion_lit.data.sources.fashion_mnist import (
    CLASS_NAMES,
    IMAGE_SIZE,
    NUM_CLASSES,
    PIXEL_MEAN,
    PIXEL_STD,
)
from fashion_lit.data.sources.source import ImageSource, LabelledImages

NumImages = Annotated[int, Field(ge=NUM_CLASSES, le=10_000_000)]  # of 784 bytes
Point = tuple[float, float]

TEMPLATE_SIZE = 112  # pixels; four times the image size, for smooth edges after resampling
TRAIN_STREAM, TEST_STREAM = 0, 1  # separate random streams for the two sets

# Each silhouette: (shade in 0..1, polygon) in drawing order; x to the right, y down, both in 0..1.
_TORSO: list[Point] = [(0.32, 0.15), (0.68, 0.15), (0.68, 0.88), (0.32, 0.88)]
_LONG_SLEEVES: list[Point] = [
    (0.34, 0.15), (0.66, 0.15), (0.78, 0.22), (0.90, 0.80), (0.78, 0.83), (0.68, 0.40),
    (0.32, 0.40), (0.22, 0.83), (0.10, 0.80), (0.22, 0.22),
]  # fmt: skip
_SHORT_SLEEVES: list[Point] = [
    (0.34, 0.15), (0.66, 0.15), (0.92, 0.30), (0.84, 0.46), (0.68, 0.36), (0.32, 0.36),
    (0.16, 0.46), (0.08, 0.30),
]  # fmt: skip
SILHOUETTES: tuple[list[tuple[float, list[Point]]], ...] = (
    # T-shirt/top: short sleeves, round neck
    [(1, _TORSO), (1, _SHORT_SLEEVES), (0, [(0.42, 0.13), (0.58, 0.13), (0.50, 0.22)])],
    # Trouser: two legs
    [(1, [(0.32, 0.08), (0.68, 0.08), (0.72, 0.94), (0.56, 0.94), (0.50, 0.35), (0.44, 0.94),
          (0.28, 0.94)])],
    # Pullover: long sleeves, closed
    [(1, _TORSO), (1, _LONG_SLEEVES), (0.7, [(0.32, 0.80), (0.68, 0.80), (0.68, 0.88),
                                             (0.32, 0.88)])],
    # Dress: narrow waist, wide hem, no sleeves
    [(1, [(0.38, 0.06), (0.62, 0.06), (0.58, 0.40), (0.74, 0.95), (0.26, 0.95), (0.42, 0.40)])],
    # Coat: long sleeves, an opening from collar to hem
    [(1, _TORSO), (1, _LONG_SLEEVES), (0, [(0.45, 0.13), (0.55, 0.13), (0.515, 0.30),
                                           (0.515, 0.90), (0.485, 0.90), (0.485, 0.30)])],
    # Sandal: a flat sole and thin straps
    [(1, [(0.06, 0.70), (0.94, 0.60), (0.94, 0.70), (0.06, 0.80)]),
     (1, [(0.20, 0.70), (0.42, 0.40), (0.48, 0.42), (0.28, 0.70)]),
     (1, [(0.42, 0.40), (0.70, 0.64), (0.64, 0.68), (0.40, 0.46)])],
    # Shirt: half-long sleeves, a pointed collar, a row of buttons
    [(1, _TORSO), (1, _SHORT_SLEEVES), (0.35, [(0.38, 0.13), (0.50, 0.30), (0.62, 0.13)]),
     *((0, [(0.48, y), (0.52, y), (0.52, y + 0.05), (0.48, y + 0.05)])
       for y in (0.38, 0.52, 0.66, 0.80))],
    # Sneaker: low, with a light sole
    [(0.8, [(0.06, 0.44), (0.30, 0.42), (0.52, 0.56), (0.92, 0.62), (0.94, 0.74), (0.06, 0.74)]),
     (1, [(0.06, 0.70), (0.94, 0.70), (0.94, 0.77), (0.06, 0.77)])],
    # Bag: a box with a handle
    [(1, [(0.30, 0.14), (0.70, 0.14), (0.76, 0.42), (0.24, 0.42)]),
     (0, [(0.36, 0.20), (0.64, 0.20), (0.68, 0.42), (0.32, 0.42)]),
     (0.9, [(0.12, 0.40), (0.88, 0.40), (0.92, 0.86), (0.08, 0.86)])],
    # Ankle boot: a high shaft and a heel
    [(1, [(0.10, 0.14), (0.46, 0.14), (0.48, 0.48), (0.88, 0.58), (0.94, 0.78), (0.10, 0.78)]),
     (1, [(0.10, 0.76), (0.28, 0.76), (0.26, 0.88), (0.10, 0.88)])],
)  # fmt: skip


class SyntheticGarments(ImageSource):
    """Draw ten balanced classes of garments, determined by the seed and the number of images.

    Args:
        num_train: number of training images.
        num_test: number of test images.
        drawing_seed: seed of the drawings; train and test use separate random streams.
    """

    title = "synthetic garments"
    class_names = CLASS_NAMES
    image_size = IMAGE_SIZE
    mean = (PIXEL_MEAN,)  # those of Fashion-MNIST, which they stand for
    std = (PIXEL_STD,)

    def __init__(
        self, *, num_train: NumImages, num_test: NumImages, drawing_seed: NonNegativeInt = 0
    ) -> None:
        self.num_train = num_train
        self.num_test = num_test
        self.drawing_seed = drawing_seed

    def load(self) -> tuple[LabelledImages, LabelledImages]:
        """Draw and return the training and the test images."""
        train = draw_garments(self.num_train, generator(self.drawing_seed, TRAIN_STREAM))
        return train, draw_garments(self.num_test, generator(self.drawing_seed, TEST_STREAM))


def draw_garments(num_images: int, random: Generator) -> LabelledImages:
    """Draw `num_images` garments in random class order; class counts differ by at most one."""
    labels = torch.arange(num_images) % NUM_CLASSES
    labels = labels[torch.randperm(num_images, generator=random)]
    templates = torch.stack([_draw_template(silhouette) for silhouette in SILHOUETTES])
    size = [num_images, 1, IMAGE_SIZE, IMAGE_SIZE]
    grid = F.affine_grid(_draw_poses(num_images, random), size, align_corners=False)
    shapes = torch.cat(
        [  # in chunks: a template has sixteen times as many pixels as an image
            F.grid_sample(templates[chunk_labels], chunk_grid, align_corners=False)
            for chunk_labels, chunk_grid in zip(labels.split(1000), grid.split(1000), strict=True)
        ]
    )[:, 0]  # (N, 28, 28) in [0, 1]
    shade = 0.35 + 0.65 * torch.rand(num_images, 1, 1, generator=random)
    texture = torch.rand(num_images, 1, 4, 4, generator=random)
    texture = F.interpolate(texture, IMAGE_SIZE, mode="bilinear")[:, 0]  # imitates folds and prints
    noise = torch.randn(num_images, IMAGE_SIZE, IMAGE_SIZE, generator=random)
    pixels = shapes * shade * (0.5 + 0.5 * texture) + 0.12 * noise
    return LabelledImages((255 * pixels.clamp(0, 1)).round().to(torch.uint8), labels)


def _draw_template(silhouette: list[tuple[float, list[Point]]]) -> Tensor:
    """Rasterise a silhouette: (1, TEMPLATE_SIZE, TEMPLATE_SIZE) in [0, 1]."""
    image = Image.new("L", (TEMPLATE_SIZE, TEMPLATE_SIZE))
    canvas = ImageDraw.Draw(image)
    for shade, polygon in silhouette:
        points = [(x * TEMPLATE_SIZE, y * TEMPLATE_SIZE) for x, y in polygon]
        canvas.polygon(points, fill=round(255 * shade))
    return torch.from_numpy(np.array(image))[None].float() / 255


def _draw_poses(num_images: int, random: Generator) -> Tensor:
    """Draw affine maps (N, 2, 3): rotation up to 20 degrees, scale 0.7 to 1.1, shift up to 0.25.

    The shift is in the coordinates of `affine_grid`, where an image spans -1 to 1.
    """

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(num_images, generator=random)

    angle, size = torch.deg2rad(uniform(-20, 20)), uniform(0.7, 1.1)
    cosine, sine = angle.cos() / size, angle.sin() / size
    right, down = uniform(-0.25, 0.25), uniform(-0.25, 0.25)
    rows = [torch.stack([cosine, -sine, right], 1), torch.stack([sine, cosine, down], 1)]
    return torch.stack(rows, 1)
