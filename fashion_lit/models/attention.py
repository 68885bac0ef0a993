"""Attention layers, which weigh the channels or pixels of a feature map by its own contents.

    layer = attention("se", 64)  # (B, 64, H, W) float -> the same shape

They follow the convolutions of a block; in a residual block they precede the addition.
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

AttentionKind = Literal["se", "cbam", "eca"]
REDUCTION = 16  # channels per hidden unit, in both papers that have hidden units
FEWEST_HIDDEN = 4  # so that narrow layers keep some


def attention(kind: AttentionKind | None, channels: int) -> nn.Module:
    """Return an attention layer for feature maps of `channels` channels; None: the identity."""
    return nn.Identity() if kind is None else KINDS[kind](channels)


def num_hidden(channels: int) -> int:
    """Return the number of hidden units of SE and CBAM."""
    return max(channels // REDUCTION, FEWEST_HIDDEN)


class SqueezeExcitation(nn.Module):
    """Weigh channels by a small network on their means: Hu et al. 2017.

    https://arxiv.org/abs/1709.01507
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.reduce = nn.Linear(channels, num_hidden(channels))
        self.expand = nn.Linear(num_hidden(channels), channels)

    def forward(self, x: Tensor) -> Tensor:
        """Scale (B, channels, H, W) by weights (B, channels) in 0..1."""
        weights = self.expand(F.relu(self.reduce(x.mean((2, 3)))))
        return x * weights.sigmoid()[:, :, None, None]


class EfficientChannelAttention(nn.Module):
    """Weigh each channel by the means of its few neighbours, ECA: Wang et al. 2019.

    https://arxiv.org/abs/1910.03151
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        size = int((math.log2(channels) + 1) / 2)  # the paper's equation 12: gamma 2, b 1
        size += 1 - size % 2  # odd
        self.conv = nn.Conv1d(1, 1, size, padding=size // 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Scale (B, channels, H, W) by weights (B, channels) in 0..1."""
        weights = self.conv(x.mean((2, 3))[:, None]).squeeze(1)
        return x * weights.sigmoid()[:, :, None, None]


class CBAM(nn.Module):
    """Weigh channels by their means and maxima, then pixels by theirs: Woo et al. 2018.

    The hidden units have no biases, and the 7x7 convolution is normalised, as in the authors' code.
    https://arxiv.org/abs/1807.06521
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.reduce = nn.Linear(channels, num_hidden(channels), bias=False)
        self.expand = nn.Linear(num_hidden(channels), channels, bias=False)
        self.conv = nn.Conv2d(2, 1, 7, padding=3, bias=False)
        self.norm = nn.BatchNorm2d(1)

    def forward(self, x: Tensor) -> Tensor:
        """Scale (B, channels, H, W) by weights (B, channels), then (B, H, W), all in 0..1."""
        # amax would do, but its backward pass over pixels is slow
        maxima = F.max_pool2d(x, x.shape[2:]).flatten(1)
        weights = self._hidden(x.mean((2, 3))) + self._hidden(maxima)
        x = x * weights.sigmoid()[:, :, None, None]
        pooled = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], dim=1)
        return x * self.norm(self.conv(pooled)).sigmoid()

    def _hidden(self, pooled: Tensor) -> Tensor:
        return self.expand(F.relu(self.reduce(pooled)))


KINDS: dict[AttentionKind, type[nn.Module]] = {
    "se": SqueezeExcitation,
    "cbam": CBAM,
    "eca": EfficientChannelAttention,
}
