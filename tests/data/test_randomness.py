import pytest
import torch

from fashion_lit.data.randomness import derive_seed, generator, seed_default_generators


def test_seed_depends_on_every_key_and_their_order() -> None:
    seeds = {derive_seed(*keys) for keys in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 0)]}
    assert len(seeds) == 5
    assert derive_seed(1, 2) != derive_seed(2, 1)


def test_seeds_are_pinned() -> None:
    assert derive_seed(0, 1, 2) == 1419556851746930036  # a change would change every run
    assert derive_seed(2**32 - 1, 1) == 1970821573043642255  # the largest key of one 32-bit word
    assert derive_seed(2**32, 1) == 8290879850359252544


def test_default_generators_depend_on_the_keys_only() -> None:
    seed_default_generators(3, 4)
    first = torch.rand(3)
    torch.rand(100)
    seed_default_generators(3, 4)
    assert torch.equal(torch.rand(3), first)
    assert not torch.equal(torch.rand(3, generator=generator(3, 5)), first)


def test_apples_gpu_is_seeded_by_step(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: list[int] = []
    monkeypatch.setattr(torch.mps, "manual_seed", seeds.append)
    seed_default_generators(0, 2, 5)
    assert seeds == [derive_seed(0, 2, 5)]
