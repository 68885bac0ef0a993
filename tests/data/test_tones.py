"""Laws of the changes of grey values, and torchvision's functions on single images."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional

from fashion_lit.data import tones
from fashion_lit.data.randomness import generator
from fashion_lit.data.sources.synthetic import SyntheticGarments
from fashion_lit.data.trivial_augment import OPERATIONS, apply_operations

ONE = torch.ones(64)


@pytest.fixture(scope="module", params=["grey", "colour"])
def images(request: pytest.FixtureRequest) -> Tensor:
    """Drawn garments, noise, a dark, a bright and two even images: (64, 28, 28) or (64, 3, …)."""
    drawn = SyntheticGarments(num_train=40, num_test=10).load()[0].images
    noise = torch.randint(0, 256, (20, 28, 28), dtype=torch.uint8, generator=generator(0))
    even = torch.tensor([0, 200], dtype=torch.uint8)[:, None, None].expand(2, 28, 28)
    greys = torch.cat([drawn, noise, noise[:1] // 4, 255 - noise[:1] // 4, even])
    return (
        greys
        if request.param == "grey"
        else torch.stack([greys, greys.flip(0), greys.roll(7, 0)], 1)
    )


def channels_of(image: Tensor) -> Tensor:
    """Return an image as torchvision's functions take it: (C, H, W)."""
    return image if image.ndim == 3 else image[None]


def test_neutral_factors_are_the_identity_to_the_bit(images: Tensor) -> None:
    assert torch.equal(tones.look_up(images, tones.brightness(ONE)), images)
    assert torch.equal(tones.look_up(images, tones.contrast(images, ONE)), images)
    assert torch.equal(tones.look_up(images, tones.posterize(8 * ONE)), images)
    assert torch.equal(tones.look_up(images, tones.solarize(256 * ONE)), images)
    assert torch.equal(tones.sharpen(images, ONE), images)


def test_operations_without_strength_are_the_identity(images: Tensor) -> None:
    with_strength = [name for name in OPERATIONS if name not in ("auto_contrast", "equalize")]
    for name in with_strength:
        operation = torch.full((64,), OPERATIONS.index(name))
        result = apply_operations(images, operation, 0 * ONE)
        if name == "solarize":  # the paper's weakest solarisation inverts pure white
            images = torch.where(images == 255, 0, images)
        assert torch.equal(result, images), name


def affine(image: Tensor, **motion: float) -> Tensor:
    shear = [motion.get("shear_x", 0.0), motion.get("shear_y", 0.0)]
    translate = [motion.get("right", 0), motion.get("down", 0)]
    angle, kind = motion.get("angle", 0.0), InterpolationMode.BILINEAR
    return functional.affine(image, angle, translate, 1.0, shear, kind)  # type: ignore[arg-type]


def slope(strength: float) -> float:
    return float(torch.tensor(0.99 * strength).atan().rad2deg())


TORCHVISION: dict[str, Callable[[Tensor, float], Tensor]] = {
    "identity": lambda image, _: image,
    "shear_x": lambda image, m: affine(image, shear_x=slope(m)),
    "shear_y": lambda image, m: affine(image, shear_y=slope(m)),
    "translate_x": lambda image, m: affine(image, right=int(28 * m)),
    "translate_y": lambda image, m: affine(image, down=int(28 * m)),
    "rotate": lambda image, m: affine(image, angle=135 * m),
    "brightness": lambda image, m: functional.adjust_brightness(image, 1 + 0.99 * m),
    "contrast": lambda image, m: functional.adjust_contrast(image, 1 + 0.99 * m),
    "sharpness": lambda image, m: functional.adjust_sharpness(image, 1 + 0.99 * m),
    "posterize": lambda image, m: functional.posterize(image, 8 - round(6 * abs(m))),
    "solarize": lambda image, m: functional.solarize(image, 255 * (1 - abs(m))),
    "auto_contrast": lambda image, _: functional.autocontrast(image),
    "equalize": lambda image, _: functional.equalize(image),
    "color": lambda image, m: functional.adjust_saturation(image, 1 + 0.99 * m),
}
EXACT = ("identity", "translate_x", "translate_y", "posterize", "solarize", "equalize")


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("strength", [0.3, -0.7, 1.0])
def test_operations_match_torchvision_on_each_image(
    name: str, strength: float, images: Tensor
) -> None:
    operation = torch.full((64,), OPERATIONS.index(name))
    result = apply_operations(images, operation, strength * ONE)
    for index, image in enumerate(images):
        expected = TORCHVISION[name](channels_of(image), strength).view_as(image)
        difference = (result[index].int() - expected.int()).abs().max()
        # One grey value: torchvision truncates most results, which are rounded here.
        assert difference <= (0 if name in EXACT else 1), index


def test_brightness_and_contrast_have_a_factor_for_each_image(images: Tensor) -> None:
    factor = 0.5 + torch.rand(64, generator=generator(1))
    brighter = tones.look_up(images, tones.brightness(factor))
    clearer = tones.look_up(images, tones.contrast(images, factor))
    for index, image in enumerate(images):
        share = float(factor[index])
        for result, expected in (
            (brighter[index], functional.adjust_brightness(channels_of(image), share)),
            (clearer[index], functional.adjust_contrast(channels_of(image), share)),
        ):
            assert (result.int() - expected.view_as(result).int()).abs().max() <= 1


def test_every_image_has_its_own_operation(images: Tensor) -> None:
    operation = torch.arange(64) % len(OPERATIONS)
    magnitude = torch.linspace(-1, 1, 64)
    mixed = apply_operations(images, operation, magnitude)
    for place in range(len(OPERATIONS)):
        alone = apply_operations(images, torch.full((64,), place), magnitude)
        assert torch.equal(mixed[operation == place], alone[operation == place])
