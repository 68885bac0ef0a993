from typing import Any

import pytest
import torch
from torch import Tensor

from fashion_lit.data.augment import Augment
from fashion_lit.data.geometry import erase_square, flip_horizontally, shift_pixels
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


def test_an_own_augmentation_may_draw_from_torchs_default_generator(images: Tensor) -> None:
    def noise(images: Tensor, _: torch.Generator) -> Tensor:
        return images + torch.randint(256, images.shape, dtype=torch.uint8)

    augment = Augment(own=noise)
    first, other = augment(images, generator(1)), augment(images, generator(2))
    torch.rand(5)
    assert torch.equal(augment(images, generator(1)), first)
    assert not torch.equal(other, first)


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


KINDS: dict[str, dict[str, Any]] = {
    "flip": {"flip": 0.5},
    "shift": {"shift": 3},
    "rotate": {"rotate": 30.0},
    "scale": {"scale": 0.3},
    "shear": {"shear": 20.0},
    "brightness": {"brightness": 0.5},
    "contrast": {"contrast": 0.5},
    "trivial_augment": {"trivial_augment": 1.0},
    "erase": {"erase": 8},
    "random_erase": {"random_erase": 0.9},
    "black": {"random_erase": 0.9, "random_erase_fill": "black"},
    "mixup": {"mixup": 1.0},
    "cutmix": {"cutmix": 1.0},
}
AIMED = ("flip", "shift", "rotate", "scale", "shear", "brightness", "contrast", "trivial_augment")
LABELS = torch.arange(64) % 10


def augmented(images: Tensor, key: int, **settings: Any) -> Tensor:
    draws, augment = generator(key), Augment(**settings)
    return augment.mix(augment(images, draws, LABELS), LABELS, draws, epoch=0)[0]


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_repeats_with_the_seed_and_differs_between_images(
    kind: str, images: Tensor
) -> None:
    settings, before = KINDS[kind], images.clone()
    result = augmented(images, 1, **settings)
    assert result.dtype == torch.uint8
    assert torch.equal(images, before)
    assert torch.equal(result, augmented(images, 1, **settings))
    assert not torch.equal(result, augmented(images, 2, **settings))
    if kind not in ("mixup", "cutmix"):  # which mix equal images to the same
        results = augmented(images[:1].expand(64, -1, -1), 1, **settings)
        assert len(torch.unique(results, dim=0)) > (1 if kind == "flip" else 20)


@pytest.mark.parametrize("kind", KINDS)
def test_the_channels_of_a_colour_image_are_changed_alike(kind: str, images: Tensor) -> None:
    settings = KINDS[kind]
    colours = augmented(images[:, None].repeat(1, 3, 1, 1), 1, **settings)
    assert colours.shape == (64, 3, 28, 28)
    if kind == "random_erase":  # the colour of each pixel is random
        erased = (colours != images[:, None]).any(1)
        assert len(torch.unique(colours[:, 0][erased] == colours[:, 1][erased])) == 2
        return
    red, green, blue = colours.unbind(1)
    assert torch.equal(red, green)
    assert torch.equal(red, blue)
    if kind != "trivial_augment":  # which has one more operation on colours
        difference = (red.int() - augmented(images, 1, **settings).int()).abs().max()
        assert difference <= (1 if kind == "contrast" else 0)  # the grey is rounded down


@pytest.mark.parametrize("kind", [k for k in KINDS if k not in ("flip", "shift", "erase")])
def test_a_probability_leaves_the_other_images_alone(kind: str, images: Tensor) -> None:
    settings = dict(KINDS[kind])
    name = next(iter(settings))
    settings[name] = 0.25 if "erase" in settings or name == "random_erase" else [0.9, 0.25]
    changed = [(augmented(images, key, **settings) != images).flatten(1).any(1) for key in range(8)]
    assert 0.15 < float(torch.stack(changed).float().mean()) < 0.35


@pytest.mark.parametrize("kind", AIMED)
def test_kinds_aimed_at_classes_leave_the_others_alone(kind: str, images: Tensor) -> None:
    classes = ["Shirt", "T-shirt/top"]
    everywhere = augmented(images, 1, **KINDS[kind])
    result = augmented(images, 1, **KINDS[kind], classes=classes)
    aimed = (LABELS == 6) | (LABELS == 0)
    assert torch.equal(result[~aimed], images[~aimed])
    assert torch.equal(result[aimed], everywhere[aimed])
    assert not torch.equal(result[aimed], images[aimed])


def test_new_kinds_leave_the_draws_of_flip_shift_and_erase_alone(images: Tensor) -> None:
    old: dict[str, Any] = {"flip": 0.5, "shift": 2, "erase": 8}
    draws = generator(3)
    chances = torch.rand(64, generator=draws)
    down, right, top, left = (
        torch.randint(low, high, (64,), generator=draws)
        for low, high in ((-2, 3), (-2, 3), (-7, 28), (-7, 28))
    )
    expected = shift_pixels(flip_horizontally(images, chances < 0.5), down, right, 2)
    assert torch.equal(augmented(images, 3, **old), erase_square(expected, top, left, 8))


def test_randomly_erased_boxes_have_the_given_areas_and_ratios(images: Tensor) -> None:
    settings = {"random_erase_area": (0.1, 0.2), "random_erase_aspect": 0.5}
    erased = torch.cat(
        [augmented(images, key, random_erase=0.5, random_erase_fill="black", **settings) == 0
         for key in range(8)]
    )  # fmt: skip
    rows, columns = erased.any(2), erased.any(1)
    assert torch.equal(erased, rows[:, :, None] & columns[:, None, :])  # rectangles
    heights, widths = rows.sum(1), columns.sum(1)
    is_erased = heights > 0
    assert 0.4 < float(is_erased.float().mean()) < 0.6
    areas = (heights * widths)[is_erased] / 784
    ratios = (heights / widths)[is_erased]
    assert 0.08 < float(areas.min()) < 0.11  # sides are whole pixels
    assert 0.19 < float(areas.max()) < 0.22
    assert 0.45 < float(ratios.min()) < 0.6
    assert 1.7 < float(ratios.max()) < 2.25
    for edge in (0, 27):  # as often at the border as elsewhere
        assert erased[is_erased][:, edge].any()
        assert erased[is_erased][:, :, edge].any()


def test_boxes_that_never_fit_are_not_erased(images: Tensor) -> None:
    too_long = augmented(
        images, 0, random_erase=1.0, random_erase_area=(1.0, 1.0), random_erase_aspect=0.01
    )
    assert (too_long == images).flatten(1).all(1).float().mean() > 0.8


def test_random_fill_has_a_grey_for_each_pixel() -> None:
    black = torch.zeros(64, 28, 28, dtype=torch.uint8)
    greys = augmented(black, 0, random_erase=1.0)
    counts = greys.flatten().bincount(minlength=256)[1:]
    assert int(counts.min()) > 0  # 1 to 255
    assert float(counts.max() / counts.min()) < 4
