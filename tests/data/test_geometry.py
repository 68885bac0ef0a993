"""Laws of the geometric functions, and torchvision's functions on single images."""

import pytest
import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional

from fashion_lit.data.geometry import affine_maps, inside_boxes, resample
from fashion_lit.data.randomness import generator

NONE, ONE = torch.zeros(64), torch.ones(64)


@pytest.fixture
def images() -> Tensor:
    return torch.randint(0, 256, (64, 28, 28), dtype=torch.uint8, generator=generator(0))


def within(low: float, high: float, key: int) -> Tensor:
    return low + (high - low) * torch.rand(64, generator=generator(key))


def test_no_motion_is_the_identity_to_the_bit(images: Tensor) -> None:
    maps = affine_maps(NONE, ONE, NONE, NONE)
    assert torch.equal(resample(images, maps), images)
    assert torch.equal(resample(images, maps, NONE, NONE), images)


def test_four_rotations_by_90_degrees_are_the_identity(images: Tensor) -> None:
    quarter = affine_maps(90 * ONE, ONE, NONE, NONE)
    turned = resample(images, quarter)
    assert torch.equal(turned, images.rot90(-1, (1, 2)))  # clockwise
    for _ in range(3):
        turned = resample(turned, quarter)
    assert torch.equal(turned, images)


def test_outside_of_the_image_is_black(images: Tensor) -> None:
    shrunk = resample(images.clamp(min=1), affine_maps(NONE, 0.5 * ONE, NONE, NONE))
    assert (shrunk[:, 8:20, 8:20] > 0).all()
    assert not shrunk[:, :6].any()
    assert not shrunk[:, :, 22:].any()


def test_affine_maps_match_torchvision_on_each_image(images: Tensor) -> None:
    angle, factor = within(-180, 180, 1), within(0.5, 1.5, 2)
    shear_x, shear_y = within(-40, 40, 3), within(-40, 40, 4)
    result = resample(images, affine_maps(angle, factor, shear_x, shear_y))
    for index in range(64):
        expected = functional.affine(
            images[index][None],
            angle=float(angle[index]),
            translate=[0, 0],
            scale=float(factor[index]),
            shear=[float(shear_x[index]), float(shear_y[index])],
            interpolation=InterpolationMode.BILINEAR,
        )[0]
        # One grey value, where rounding errors of a coordinate decide.
        assert (result[index].int() - expected.int()).abs().max() <= 1


def test_shifts_by_whole_pixels_match_torchvision(images: Tensor) -> None:
    right, down = within(-5, 5, 1).round(), within(-5, 5, 2).round()
    result = resample(images, affine_maps(NONE, ONE, NONE, NONE), right, down)
    for index in range(64):
        expected = functional.affine(
            images[index][None],
            angle=0,
            translate=[int(right[index]), int(down[index])],
            scale=1,
            shear=[0, 0],
        )
        assert torch.equal(result[index], expected[0])


def test_boxes_match_torchvisions_erase(images: Tensor) -> None:
    top, left = within(0, 20, 1).long(), within(0, 20, 2).long()
    height, width = within(0, 8, 3).long(), within(0, 8, 4).long()
    result = images.masked_fill(inside_boxes(images, top, left, height, width), 7)
    fill = torch.tensor([7], dtype=torch.uint8)
    for index in range(64):
        box = [int(part[index]) for part in (top, left, height, width)]
        expected = functional.erase(images[index][None], *box, v=fill)
        assert torch.equal(result[index], expected[0])
