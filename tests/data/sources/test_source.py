"""What is computed from any source's images, and what is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fashion_lit.data.randomness import generator
from fashion_lit.data.sources.source import (
    ImageSource,
    LabelledImages,
    check_images,
    check_source,
    fingerprint,
    load_from,
    mean_and_std,
)
from fashion_lit.errors import UserError


class Noise(ImageSource):
    """Random images in three classes, in colour."""

    def __init__(self, **attributes: Any) -> None:
        self.title = "noise"
        self.class_names = ["a", "b", "c"]
        self.num_train, self.num_test = 6, 3
        self.image_size = 8
        self.channels = 3
        for name, value in attributes.items():
            setattr(self, name, value)

    def load(self) -> tuple[LabelledImages, LabelledImages]:
        """Draw them."""
        return draw(6), draw(3)


def draw(number: int, shape: tuple[int, ...] = (3, 8, 8)) -> LabelledImages:
    chances = generator(number)
    images = torch.randint(0, 256, (number, *shape), generator=chances, dtype=torch.uint8)
    return LabelledImages(images, torch.arange(number) % 3)


@pytest.mark.parametrize("shape", [(8, 8), (3, 8, 8)])
def test_mean_and_standard_deviation_are_numpys(shape: tuple[int, ...]) -> None:
    images = draw(1500, shape).images
    channels = images.double().numpy().reshape(1500, -1, 8, 8) / 255
    mean, std = mean_and_std(images)
    np.testing.assert_allclose(mean, channels.mean((0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(std, channels.std((0, 2, 3)), rtol=1e-12)
    assert mean_and_std(images.flip(0, -1)) == (mean, std)  # to the bit, in any order
    assert mean_and_std(torch.full((2, 4, 4), 51, dtype=torch.uint8)) == ((0.2,), (1.0,))


def test_the_fingerprint_depends_on_names_images_labels_and_their_order() -> None:
    train, test = draw(6), draw(3)
    names = ["a", "b", "c"]
    changed = train.images.clone()
    changed[5, 2, 7, 7] += 1
    found = {
        fingerprint(names, train, test),
        fingerprint(["a", "b", "d"], train, test),
        fingerprint(["a", "b,c", "d"], train, test),
        fingerprint(names, train._replace(images=changed), test),
        fingerprint(names, train._replace(labels=train.labels.flip(0)), test),
        fingerprint(names, train._replace(images=train.images.flatten(1)), test),
        fingerprint(names, test, train),
    }
    assert len(found) == 7
    assert fingerprint(tuple(names), draw(6), draw(3)) in found


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"class_names": ["a"]}, "two classes or more in noise, but got a"),
        ({"class_names": []}, "two classes or more in noise, but got none"),
        ({"class_names": ["a", ""]}, "text as the names of the classes of noise"),
        ({"class_names": ["a b", "a/b"]}, "but got 'a b' and 'a/b'; rename one of them"),
        ({"num_train": 0}, "Expected training images in noise"),
        ({"image_size": 5000}, "images of 1 to 4,096 pixels"),
        ({"channels": 4}, "images of 1 or 3 channels"),
        ({"mean": (0.5,)}, "`mean` of noise to hold a number for each of its 3 channels"),
        ({"std": (0.5, 0.0, 0.5)}, "`std` of noise to be above 0"),
        ({"title": None}, "Expected Noise to set `title`, a text, but it has none"),
        ({"class_names": "abc"}, "Expected Noise to set `class_names`, a list of texts, but got"),
        ({"num_train": 6.5}, "`num_train`, a whole number, but got 6.5"),
        ({"class_names": ["a", "b\x1b[31m", "c"]}, "without control characters"),
        ({"class_names": ["a", "caf\udce9", "c"]}, "in UTF-8, but got 'caf"),
        ({"title": "a\nb"}, "the `title` of Noise without control characters"),
        ({"mean": 0.5}, "`mean` of noise to hold a number"),
        ({"mean": ["x", 1, 1]}, "`mean` of noise to hold a number"),
        ({"image_size": True}, "`image_size`, a whole number, but got True"),
    ],
)
def test_impossible_attributes_are_refused(attributes: dict[str, Any], message: str) -> None:
    check_source(Noise())
    with pytest.raises(UserError, match=message):
        check_source(Noise(**attributes))


def test_numpys_names_and_numbers_become_plain_ones() -> None:
    names = list(np.array(["a", "b", "c"]))
    source = Noise(class_names=names, mean=np.full(3, 0.5, np.float32), std=torch.ones(3))
    check_source(source)
    assert {type(name) for name in source.class_names} == {str}
    assert {type(value) for value in (*source.mean, *source.std)} == {float}  # type: ignore[misc]


class Derived(Noise):
    """Whose attributes cannot be set, and are plain."""

    class_names = property(lambda self: ["a", "b", "c"], lambda self, value: None)  # type: ignore[assignment]
    mean = property(lambda self: (0.5, 0.5, 0.5))  # type: ignore[assignment]


def test_attributes_may_be_properties() -> None:
    check_source(Derived())


@pytest.mark.parametrize(
    ("train", "message"),
    [
        (draw(5), r"load training images \(6, 3, 8, 8\) uint8 and labels \(6,\) int64, but got"),
        (draw(6, (8, 8)), r"but got \(\(6, 8, 8\), torch\.uint8\)"),
        (draw(6)._replace(labels=torch.zeros(6)), r"\(\(6,\), torch\.float32\)"),
        (draw(6)._replace(labels=[0, 1]), "but got .* and .*list"),  # type: ignore[arg-type]
        (draw(6)._replace(labels=torch.arange(6)), "labels of 0 to 2 in the training images of"),
    ],
)
def test_other_images_than_announced_are_refused(train: LabelledImages, message: str) -> None:
    check_images(Noise(), *Noise().load())
    with pytest.raises(UserError, match=message):
        check_images(Noise(), train, draw(3))


@pytest.mark.parametrize(
    ("loaded", "message"),
    [
        (None, "Noise to load training and test images, but it raised TypeError"),
        ((draw(6),), "it raised ValueError: not enough values"),
        ((draw(6), (1, 2, 3)), "it raised TypeError"),
        ((draw(6), draw(2)), r"load test images \(3, 3, 8, 8\)"),
    ],
)
def test_what_a_source_returns_or_raises_instead_is_one_sentence(loaded: Any, message: str) -> None:
    source = Noise()
    assert load_from(source)[0].images.shape == (6, 3, 8, 8)
    source.load = lambda: loaded  # type: ignore[method-assign]
    with pytest.raises(UserError, match=message):
        load_from(source)
    with pytest.raises(FileNotFoundError, match=r"pixels\.bin"):  # a command names the file
        load_from(Missing())


class Missing(Noise):
    def load(self) -> tuple[LabelledImages, LabelledImages]:
        return Path("pixels.bin").read_bytes()  # type: ignore[return-value]
