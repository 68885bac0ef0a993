"""Seeds, generators and draws derived from keys such as (seed, epoch, step).

Random values depend on these keys only, not on the number of earlier draws. A stopped run therefore
needs no stored generator state: epoch 3, step 17 draws the same numbers in a resumed process as in
an uninterrupted one.
"""

import numpy as np
import torch
from torch import Tensor

from fashion_lit.data.types import Strength, pair_of


def derive_seed(*keys: int) -> int:
    """Return a 63-bit seed that depends on all `keys` (non-negative integers) and their order."""
    words = (len(keys), *keys)  # without the length, SeedSequence ignores trailing zeros
    # An array gives the same seed as a tuple, in a quarter of the time.
    entropy = np.array(words, np.uint32) if max(words) < 2**32 else words
    return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0]) >> 1


def generator(*keys: int, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a generator on `device`, seeded by `keys`."""
    return torch.Generator(device).manual_seed(derive_seed(*keys))


class EpochCounter:
    """The epoch that a loader draws next; Lightning calls `set_epoch` on a loader's `sampler`."""

    def __init__(self) -> None:
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch to draw next."""
        self.epoch = epoch


class Draws:
    """Random values for each image of a batch, on the generator's device."""

    def __init__(self, num_images: int, generator: torch.Generator) -> None:
        self.num_images = num_images
        self.generator = generator

    def integers(self, low: int, high: int) -> Tensor:
        """Return whole numbers (B,) int64 in low..high."""
        size, device = (self.num_images,), self.generator.device
        return torch.randint(low, high + 1, size, generator=self.generator, device=device)

    def uniform(self, *shape: int) -> Tensor:
        """Return numbers (B, *shape) float32 in [0, 1)."""
        size, device = (self.num_images, *shape), self.generator.device
        return torch.rand(size, generator=self.generator, device=device)

    def greys(self, *shape: int) -> Tensor:
        """Return whole numbers (B, *shape) uint8 in 0..255, eight from each random number."""
        size = torch.Size((self.num_images, *shape))
        words = torch.empty(-(-size.numel() // 8), dtype=torch.int64, device=self.generator.device)
        words.random_(-(2**63), None, generator=self.generator)
        return words.view(torch.uint8)[: size.numel()].view(size)

    def around(self, centre: float, strength: Strength, aimed: Tensor | None) -> Tensor:
        """Return numbers (B,), uniform within a strength of `centre`.

        Images that the strength's probability, or `aimed` (B,) bool, leaves out get `centre`.
        """
        greatest, probability = pair_of(strength)
        values = centre + greatest * (2 * self.uniform() - 1)
        if probability < 1:
            values = torch.where(self.uniform() < probability, values, centre)
        return values if aimed is None else torch.where(aimed, values, centre)


def seed_default_generators(*keys: int) -> None:
    """Seed the default generators, which dropout uses, of the CPU, MPS and all CUDA devices.

    CUDA is skipped unless it is initialised. `torch.manual_seed` covers more kinds of device, but
    takes a quarter of a millisecond.
    """
    seed = derive_seed(*keys)
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)
    torch.mps.manual_seed(seed)  # does nothing without an Apple GPU
