import pytest
import torch
from torch import Tensor

from fashion_lit.data.augment import Augment, erase_square, flip_horizontally, shift_pixels
from fashion_lit.data.randomness import generator


@pytest.fixture
def images() -> Tensor:
    return torch.randint(1, 256, (64, 28, 28), dtype=torch.uint8, generator=generator(0))


def test_flip_mirrors_the_chosen_images_only(images: Tensor) -> None:
    flipped = torch.arange(64) % 2 == 0
    result = flip_horizontally(images, flipped)
    for index in range(64):
        expected = images[index].fliplr() if flipped[index] else images[index]
        assert torch.equal(result[index], expected)


def test_flipping_twice_is_the_identity(images: Tensor) -> None:
    everything = torch.ones(64, dtype=torch.bool)
    twice = flip_horizontally(flip_horizontally(images, everything), everything)
    assert torch.equal(twice, images)


def test_shift_matches_a_loop_over_roll_and_blacken(images: Tensor) -> None:
    down = torch.randint(-3, 4, (64,), generator=generator(1))
    right = torch.randint(-3, 4, (64,), generator=generator(2))
    result = shift_pixels(images, down, right, 3)
    for index, (dy, dx) in enumerate(zip(down.tolist(), right.tolist(), strict=True)):
        expected = images[index].roll((dy, dx), (0, 1))
        expected[: max(dy, 0)] = 0
        expected[28 + min(dy, 0) :] = 0
        expected[:, : max(dx, 0)] = 0
        expected[:, 28 + min(dx, 0) :] = 0
        assert torch.equal(result[index], expected)


def test_shift_by_nothing_is_the_identity(images: Tensor) -> None:
    nothing = torch.zeros(64, dtype=torch.int64)
    assert torch.equal(shift_pixels(images, nothing, nothing, 2), images)


def test_erase_blackens_exactly_the_square(images: Tensor) -> None:
    top = torch.full((64,), 5)
    left = torch.full((64,), -2)
    result = erase_square(images, top, left, 6)
    expected = images.clone()
    expected[:, 5:11, 0:4] = 0
    assert torch.equal(result, expected)


def test_augment_draws_for_each_image_and_repeats_with_the_seed(images: Tensor) -> None:
    augment = Augment(flip=0.5, shift=2, erase=8)
    same_image = images[:1].expand(64, -1, -1)
    result = augment(same_image, generator(7))
    assert len(torch.unique(result, dim=0)) > 32
    assert torch.equal(result, augment(same_image, generator(7)))
    assert not torch.equal(result, augment(same_image, generator(8)))


def test_augment_without_settings_is_the_identity(images: Tensor) -> None:
    assert torch.equal(Augment()(images, generator(0)), images)
