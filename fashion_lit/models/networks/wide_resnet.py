"""Wide residual networks: Zagoruyko and Komodakis 2016, https://arxiv.org/abs/1605.07146.

WRN-28-10 (depth 28, width 10) has 36.5 M parameters.
"""

from functools import partial

import torch.nn.functional as F
from pydantic import PositiveInt
from torch import Tensor, nn

from fashion_lit.data.augment import Probability
from fashion_lit.data.sources.fashion_mnist import NUM_CLASSES
from fashion_lit.models.attention import AttentionKind
from fashion_lit.models.blocks import (
    Depth,
    DropPath,
    PreActivationBlock,
    conv3x3,
    initialize,
    num_blocks_at_depth,
    residual_stages,
)

STEM_WIDTH = 16


class WideResNet(nn.Module):
    """Images (B, in_channels, H, W) float -> logits (B, num_classes), any H and W from 8.

    Args:
        depth: number of convolutions and linear layers, 6 n + 4: 16, 22, 28, 40, …
        width: factor on the channels of the three stages, 16, 32 and 64.
        dropout: probability between the two convolutions of a block.
        attention: attention layer at the end of each residual branch; None: none.
        drop_path: probability that a sample skips the last residual branch in training; earlier
            ones less, in proportion.
        in_channels: channels of the images.
        num_classes: number of classes.

    Raises:
        UserError: for a depth that is not 6 n + 4.
    """

    def __init__(
        self,
        *,
        depth: Depth = 28,
        width: PositiveInt = 10,
        dropout: Probability = 0.0,
        attention: AttentionKind | None = None,
        drop_path: DropPath = 0.0,
        in_channels: int = 1,
        num_classes: int = NUM_CLASSES,
    ) -> None:
        super().__init__()
        widths = [STEM_WIDTH * width * factor for factor in (1, 2, 4)]
        block = partial(PreActivationBlock, attention=attention, dropout=dropout)
        num_blocks = [num_blocks_at_depth(depth)] * 3
        self.stem = conv3x3(in_channels, STEM_WIDTH)
        self.stages = residual_stages(
            block, STEM_WIDTH, widths, num_blocks, last_drop_path=drop_path
        )
        self.norm = nn.BatchNorm2d(widths[-1])
        self.output = nn.Linear(widths[-1], num_classes)
        initialize(self)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits. The stages run at 28, 14 and 7 pixels for images of 28."""
        x = self.stages(self.stem(images))
        x = F.relu(self.norm(x), inplace=True)
        return self.output(x.mean((2, 3)))
