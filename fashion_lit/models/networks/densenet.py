"""DenseNet-BC, whose layers see the outputs of all earlier ones: Huang et al. 2016.

https://arxiv.org/abs/1608.06993. Depth 100 with growth rate 12 has 769 thousand parameters.
"""

import torch
import torch.nn.functional as F
from pydantic import PositiveInt
from torch import Tensor, nn

from fashion_lit.data.sources.fashion_mnist import NUM_CLASSES
from fashion_lit.models.blocks import Depth, conv1x1, conv3x3, initialize, num_blocks_at_depth

BOTTLENECK = 4  # channels of a 1x1 convolution, in growth rates
NUM_STAGES = 3


class DenseLayer(nn.Module):
    """Append `growth_rate` channels, computed from all channels through a bottleneck."""

    def __init__(self, in_channels: int, growth_rate: int) -> None:
        super().__init__()
        hidden = BOTTLENECK * growth_rate
        self.norm1 = nn.BatchNorm2d(in_channels)
        self.conv1 = conv1x1(in_channels, hidden)
        self.norm2 = nn.BatchNorm2d(hidden)
        self.conv2 = conv3x3(hidden, growth_rate)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_channels, H, W) to (B, in_channels + growth_rate, H, W)."""
        new = self.conv1(F.relu(self.norm1(x), inplace=True))
        new = self.conv2(F.relu(self.norm2(new), inplace=True))
        return torch.cat([x, new], dim=1)


class Transition(nn.Sequential):
    """Map (B, in_channels, H, W) to (B, out_channels, H / 2, W / 2), rounded down."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(
            nn.BatchNorm2d(in_channels),
            nn.ReLU(inplace=True),
            conv1x1(in_channels, out_channels),
            nn.AvgPool2d(2),
        )


class DenseNet(nn.Module):
    """Images (B, in_channels, H, W) float -> logits (B, num_classes), any H and W from 4.

    Args:
        depth: number of convolutions and linear layers, 6 n + 4: 40, 100, 190, 250, …
        growth_rate: channels that each layer adds; the stem has twice as many.
        in_channels: channels of the images.
        num_classes: number of classes.

    Raises:
        UserError: for a depth that is not 6 n + 4.
    """

    def __init__(
        self,
        *,
        depth: Depth = 100,
        growth_rate: PositiveInt = 12,
        in_channels: int = 1,
        num_classes: int = NUM_CLASSES,
    ) -> None:
        super().__init__()
        num_layers = num_blocks_at_depth(depth)
        channels = 2 * growth_rate
        self.stem = conv3x3(in_channels, channels)
        stages: list[nn.Module] = []
        for stage in range(NUM_STAGES):
            if stage:  # the transition halves the channels
                stages.append(Transition(channels, channels // 2))
                channels //= 2
            for _ in range(num_layers):
                stages.append(DenseLayer(channels, growth_rate))
                channels += growth_rate
        self.stages = nn.Sequential(*stages)
        self.norm = nn.BatchNorm2d(channels)
        self.output = nn.Linear(channels, num_classes)
        initialize(self)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits. The stages run at 28, 14 and 7 pixels for images of 28."""
        x = self.stages(self.stem(images))
        x = F.relu(self.norm(x), inplace=True)
        return self.output(x.mean((2, 3)))
