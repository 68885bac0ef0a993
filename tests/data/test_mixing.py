"""Laws of mixup and CutMix."""

import pytest
import torch
from torch import Tensor

from fashion_lit.data.augment import Augment
from fashion_lit.data.mixing import NUM_QUANTILES, beta_quantiles, mix_up, mixed_labels, partners
from fashion_lit.data.randomness import generator

CPU = torch.device("cpu")
LABELS = torch.arange(64) % 10
# Each image has one grey everywhere, so a pixel tells which image it is from.
EVEN = (97 * torch.arange(64) % 256).to(torch.uint8)[:, None, None].expand(64, 28, 28)


@pytest.fixture
def images() -> Tensor:
    return torch.randint(0, 256, (64, 28, 28), dtype=torch.uint8, generator=generator(0))


def test_mixup_with_a_share_of_1_is_the_identity_and_of_0_the_partner(images: Tensor) -> None:
    assert torch.equal(mix_up(images, torch.ones(64)), images)
    assert torch.equal(mix_up(images, torch.zeros(64)), partners(images))
    assert torch.equal(mixed_labels(LABELS, torch.ones(64), 10).argmax(1), LABELS)


def test_mixup_matches_a_loop(images: Tensor) -> None:
    mixed, labels = Augment(mixup=0.4).mix(images, LABELS, generator(1), epoch=0)
    assert mixed.dtype == torch.uint8
    assert labels.dtype == torch.float32
    for index in range(64):
        share = labels[index, LABELS[index]]
        assert float(labels[index].sum()) == pytest.approx(1)
        assert int((labels[index] > 0).sum()) <= 2
        expected = share * images[index] + (1 - share) * images[index - 1]
        assert (mixed[index] - expected).abs().max() <= 0.5 + 1e-4


@pytest.mark.parametrize("alpha", [0.2, 1.0, 5.0])
def test_cutmix_shares_are_areas_on_every_image(alpha: float) -> None:
    for step in range(20):
        mixed, labels = Augment(cutmix=alpha).mix(EVEN, LABELS, generator(step), epoch=0)
        own = (mixed == EVEN).flatten(1).sum(1) / 784
        partner = (mixed == partners(EVEN)).flatten(1).sum(1) / 784
        assert torch.equal(own + partner, torch.ones(64))
        assert torch.equal(labels.gather(1, LABELS[:, None])[:, 0], own)
        torch.testing.assert_close(labels.gather(1, partners(LABELS)[:, None])[:, 0], partner)


def test_cutmix_boxes_are_rectangles_and_one_an_image() -> None:
    mixed, labels = Augment(cutmix=1.0).mix(EVEN, LABELS, generator(0), epoch=0)
    pasted = mixed != EVEN
    rows, columns = pasted.any(2), pasted.any(1)
    assert torch.equal(pasted, rows[:, :, None] & columns[:, None, :])
    assert len(torch.unique(pasted, dim=0)) > 50
    assert len(torch.unique(labels, dim=0)) > 50


def test_an_image_is_mixed_in_one_way_with_the_given_probability() -> None:
    augment = Augment(mixup=[1.0, 0.25], cutmix=[1.0, 0.5])
    counts = torch.zeros(3)
    for step in range(100):
        mixed, labels = augment.mix(EVEN, LABELS, generator(step), epoch=0)
        values = [len(torch.unique(image)) for image in mixed]
        blended = (mixed != EVEN) & (mixed != partners(EVEN))
        is_blended = blended.flatten(1).any(1)
        assert blended.flatten(1).all(1).equal(is_blended)  # no box in a blended image
        assert all(number == 1 for number in torch.tensor(values)[is_blended])
        is_cut = ~is_blended & (labels.amax(1) < 1)
        counts += torch.stack([is_blended.sum(), is_cut.sum(), torch.tensor(64)])
    assert float(counts[0] / counts[2]) == pytest.approx(0.25, abs=0.02)
    assert float(counts[1] / counts[2]) == pytest.approx(0.5, abs=0.03)  # some boxes are empty


def test_mixing_ends_with_until_epoch(images: Tensor) -> None:
    augment = Augment(cutmix=1.0, until_epoch=3)
    assert [augment.is_mixing(epoch) for epoch in range(5)] == [True, True, True, False, False]
    _, labels = augment.mix(images, LABELS, generator(0), epoch=2)
    assert labels.shape == (64, 10)
    same, labels = augment.mix(images, LABELS, generator(0), epoch=3)
    assert same is images
    assert labels is LABELS
    assert not Augment(until_epoch=3).is_mixing(0)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0])
def test_quantiles_are_those_of_the_beta_distribution(alpha: float) -> None:
    x = beta_quantiles(alpha, CPU).double()
    reached = {
        0.5: 2 / torch.pi * x.sqrt().asin(),
        1.0: x,
        2.0: 3 * x**2 - 2 * x**3,
    }[alpha]
    expected = (torch.arange(NUM_QUANTILES) + 0.5) / NUM_QUANTILES
    torch.testing.assert_close(reached, expected.double(), atol=2e-4, rtol=0)


@pytest.mark.parametrize("alpha", [1e-6, 0.05, 0.2, 10.0])
def test_quantiles_have_the_variance_of_the_beta_distribution(alpha: float) -> None:
    x = beta_quantiles(alpha, CPU).double()
    assert float(x.min()) >= 0
    assert float(x.max()) <= 1
    assert torch.equal(x, x.sort().values)
    assert float(x.mean()) == pytest.approx(0.5)
    assert float(x.var()) == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=2e-3)
