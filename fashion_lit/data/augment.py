"""Batched augmentation on the batch's device, with independent random values for every image.

    augment = Augment(flip=0.5, shift=2, cutmix=1.0)
    images = augment(images, generator)  # (B, 28, 28) uint8 -> (B, 28, 28) uint8
    images, labels = augment.mix(images, labels, generator, epoch=0)  # labels (B, 10) float32

Images are (B, H, W) or, in colour, (B, 3, H, W), whose channels are changed alike. `Augment` draws
the random arguments of deterministic functions in `geometry`, `tones`, `trivial_augment` and
`mixing`.
"""

from collections.abc import Callable, Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field, PositiveInt
from torch import Generator, Tensor

from fashion_lit.data import mixing
from fashion_lit.data.classes import ClassNames, place_of
from fashion_lit.data.geometry import (
    affine_maps,
    erase_square,
    flip_horizontally,
    inside_boxes,
    resample,
    shift_pixels,
)
from fashion_lit.data.randomness import Draws, seed_default_generators
from fashion_lit.data.sources.fashion_mnist import CLASS_NAMES
from fashion_lit.data.tones import brightness, contrast, look_up
from fashion_lit.data.trivial_augment import NUM_STRENGTHS, apply_operations, num_operations
from fashion_lit.data.types import (
    NumPixels,
    Probability,
    ShareRange,
    Strength,
    pair_of,
    up_to,
)

NUM_TRIES = 10  # to draw a box that fits into the image, as in torchvision's RandomErasing
ZERO_TO_ONE = up_to(1)
ALPHA = up_to(mixing.MAX_ALPHA)


class Augment:
    """Augment the images of a batch in the order of the arguments, then mix them with each other.

    A strength is a number, applied to every image, or [number, probability]. Values are uniform
    within it. A random crop of an image with n black pixels around it is `shift=n`.

    Args:
        flip: probability of a left-right flip.
        shift: maximum shift in pixels, vertically and horizontally; 0 disables shifting.
        rotate: greatest rotation in degrees, clockwise and back.
        scale: greatest change of size as a share: 0.1 gives factors of 0.9 to 1.1. Rotation, change
            of size and shear are one bilinear resampling.
        shear: greatest horizontal shear in degrees, to both sides.
        brightness: greatest change of brightness as a share: 0.2 gives factors of 0.8 to 1.2.
        contrast: the same of the distances from an image's mean.
        trivial_augment: share of the paper's strengths in a random operation of TrivialAugment; 1
            gives the paper's.
        erase: side of the erased square in pixels; 0 disables erasing.
        random_erase: probability of an erased box of random size, Zhong et al. 2017,
            https://arxiv.org/abs/1708.04896
        random_erase_area: smallest and greatest share of the image's pixels in this box.
        random_erase_aspect: smallest ratio of its sides; the greatest is the inverse.
        random_erase_fill: what replaces its pixels, a random grey or colour for each, or black.
        mixup: alpha of mixup, whose shares are Beta(alpha, alpha).
        cutmix: alpha of CutMix, whose boxes have shares of Beta(alpha, alpha) before the image's
            border cuts them. An image is mixed in at most one way, so that the probabilities of
            mixup and CutMix add up to at most 1.
        until_epoch: number of epochs with mixup and CutMix; None: all.
        classes: the only classes, by name, whose images get the kinds from `flip` to
            `trivial_augment`; None: all. Erasing and mixing are for all classes.
        own: a function of the images and a generator, (B, H, W) uint8 to the same, that is applied
            after erasing. What it draws from torch's default generators also depends on the
            generator's seed alone.
        class_names: names of all classes of the data, in the order of their labels.
    """

    def __init__(
        self,
        *,
        flip: Probability = 0.0,
        shift: NumPixels = 0,
        rotate: Annotated[Strength, up_to(180)] = 0.0,
        scale: Annotated[Strength, up_to(0.9)] = 0.0,
        shear: Annotated[Strength, up_to(80)] = 0.0,
        brightness: Annotated[Strength, ZERO_TO_ONE] = 0.0,
        contrast: Annotated[Strength, ZERO_TO_ONE] = 0.0,
        trivial_augment: Annotated[Strength, ZERO_TO_ONE] = 0.0,
        erase: NumPixels = 0,
        random_erase: Probability = 0.0,
        random_erase_area: ShareRange = (0.02, 0.4),
        random_erase_aspect: Annotated[float, Field(ge=0.01, le=1)] = 0.3,
        random_erase_fill: Literal["random", "black"] = "random",
        mixup: Annotated[Strength, ALPHA] = 0.0,
        cutmix: Annotated[Strength, ALPHA] = 0.0,
        until_epoch: PositiveInt | None = None,
        classes: ClassNames = None,
        own: Callable[[Tensor, Generator], Tensor] | None = None,
        class_names: Sequence[str] = CLASS_NAMES,
    ) -> None:
        self.flip = flip
        self.shift = shift
        self.rotate = rotate
        self.scale = scale
        self.shear = shear
        self.brightness = brightness
        self.contrast = contrast
        self.trivial_augment = trivial_augment
        self.erase = erase
        self.random_erase = random_erase
        self.random_erase_area = random_erase_area
        self.random_erase_aspect = random_erase_aspect
        self.random_erase_fill = random_erase_fill
        self.mixup = mixup
        self.cutmix = cutmix
        self.until_epoch = until_epoch
        self.classes = classes
        self.own = own
        self.class_names = tuple(class_names)

    def __call__(
        self, images: Tensor, generator: Generator, labels: Tensor | None = None
    ) -> Tensor:
        """Return augmented images, uint8, before they are mixed.

        The input is never modified; it is returned as is if every augmentation is disabled.

        Args:
            images: (B, H, W) or (B, 3, H, W) uint8.
            generator: a generator on their device.
            labels: their classes (B,) int64; not needed if `classes` is None.
        """
        draws = Draws(len(images), generator)
        aimed = None if self.classes is None else self._aimed_at(labels)
        images = self._move(images, draws, aimed)
        images = self._change_tones(images, draws, aimed)
        images = self._erase(images, draws)
        if self.own is None:
            return images
        # Many transforms, such as torchvision's, draw from torch's default generators.
        seed_default_generators(generator.initial_seed())
        return self.own(images, generator)

    def mix(
        self, images: Tensor, labels: Tensor, generator: Generator, epoch: int
    ) -> tuple[Tensor, Tensor]:
        """Return mixed images, uint8, and the shares of their classes, (B, num_classes) float32.

        If nothing is mixed in this epoch, images and labels (B,) int64 are returned as they are.
        """
        if not self.is_mixing(epoch):
            return images, labels
        draws = Draws(len(images), generator)
        return mixing.mix(
            images,
            labels,
            draws,
            mixup=self.mixup,
            cutmix=self.cutmix,
            num_classes=len(self.class_names),
        )

    def is_mixing(self, epoch: int) -> bool:
        """Return whether the images of an epoch, counted from 0, are mixed."""
        is_over = self.until_epoch is not None and epoch >= self.until_epoch
        return bool(self.mixup or self.cutmix) and not is_over

    def _aimed_at(self, labels: Tensor | None) -> Tensor:
        assert labels is not None, "classes need labels"
        assert self.classes is not None
        places = [place_of(name, self.class_names) for name in self.classes]
        return torch.stack([labels == place for place in places]).any(0)

    def _move(self, images: Tensor, draws: Draws, aimed: Tensor | None) -> Tensor:
        if self.flip:
            flipped = draws.uniform() < self.flip
            images = flip_horizontally(images, flipped if aimed is None else flipped & aimed)
        if self.shift:
            down = draws.integers(-self.shift, self.shift)
            right = draws.integers(-self.shift, self.shift)
            if aimed is not None:
                down, right = down * aimed, right * aimed
            images = shift_pixels(images, down, right, self.shift)
        if self.rotate or self.scale or self.shear:
            angle = draws.around(0, self.rotate, aimed)
            factor = draws.around(1, self.scale, aimed)
            shear = draws.around(0, self.shear, aimed)
            images = resample(images, affine_maps(angle, factor, shear, torch.zeros_like(shear)))
        return images

    def _change_tones(self, images: Tensor, draws: Draws, aimed: Tensor | None) -> Tensor:
        if self.brightness:
            images = look_up(images, brightness(draws.around(1, self.brightness, aimed)))
        if self.contrast:
            images = look_up(images, contrast(images, draws.around(1, self.contrast, aimed)))
        if self.trivial_augment:
            greatest, probability = pair_of(self.trivial_augment)
            operation = draws.integers(0, num_operations(images) - 1)
            magnitude = draws.integers(0, NUM_STRENGTHS - 1) * (greatest / (NUM_STRENGTHS - 1))
            magnitude = magnitude * (2 * draws.integers(0, 1) - 1)
            if probability < 1:
                operation = operation * (draws.uniform() < probability)
            operation = operation if aimed is None else operation * aimed
            images = apply_operations(images, operation, magnitude)
        return images

    def _erase(self, images: Tensor, draws: Draws) -> Tensor:
        height, width = images.shape[-2:]
        if self.erase:
            top = draws.integers(1 - self.erase, height - 1)
            left = draws.integers(1 - self.erase, width - 1)
            images = erase_square(images, top, left, self.erase)
        if self.random_erase:
            boxes = self._draw_boxes(height, width, draws)
            fill = torch.zeros_like(images)
            if self.random_erase_fill == "random":
                fill = draws.greys(*images.shape[1:])
            images = torch.where(inside_boxes(images, *boxes), fill, images)
        return images

    def _draw_boxes(self, height: int, width: int, draws: Draws) -> list[Tensor]:
        """Return top, left, height and width (B,) int64 of the boxes of random erasing.

        Of several random boxes for each image, the first that fits is taken.
        """
        smallest, greatest = self.random_erase_area
        tries = draws.uniform(2, NUM_TRIES)
        areas = height * width * (smallest + (greatest - smallest) * tries[:, 0])
        ratios = self.random_erase_aspect ** (2 * tries[:, 1] - 1)  # uniform in the logarithm
        heights = (areas * ratios).sqrt().round().long()  # (B, NUM_TRIES)
        widths = (areas / ratios).sqrt().round().long()
        fits = (heights <= height) & (widths <= width)
        first = fits.byte().argmax(1, keepdim=True)  # 0 if none fits
        is_erased = fits.gather(1, first)[:, 0] & (draws.uniform() < self.random_erase)
        sides = [tried.gather(1, first)[:, 0] * is_erased for tried in (heights, widths)]
        top = (draws.uniform() * (height + 1 - sides[0])).long()
        left = (draws.uniform() * (width + 1 - sides[1])).long()
        return [top, left, *sides]
