"""Seeds and generators derived from keys such as (seed, epoch, step).

Random values depend on these keys only, not on the number of earlier draws. A stopped run therefore
needs no stored generator state: epoch 3, step 17 draws the same numbers in a resumed process as in
an uninterrupted one.
"""

import numpy as np
import torch


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
