"""Residual networks with a 3x3 stem, which keeps the resolution of small images.

The widths and blocks of ResNet-18 and ResNet-20 are those of He et al. 2015,
https://arxiv.org/abs/1512.03385. The pre-activation kind is He et al. 2016,
https://arxiv.org/abs/1603.05027.
"""

from functools import partial
from typing import Annotated

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from fashion_lit.data.sources.fashion_mnist import NUM_CLASSES
from fashion_lit.errors import UserError
from fashion_lit.models.attention import AttentionKind
from fashion_lit.models.blocks import (
    BasicBlock,
    DropPath,
    PreActivationBlock,
    Widths,
    conv3x3,
    initialize,
    residual_stages,
)

NumBlocks = Annotated[tuple[Annotated[int, Field(ge=1, le=200)], ...], Field(min_length=2)]


class ResNetSmallStem(nn.Module):
    """Images (B, in_channels, H, W) float -> logits (B, num_classes), of any size.

    A block that changes the shape has a 1x1 convolution as its shortcut. (He et al. 2015 pad with
    zeros in ResNet-20, which saves 2,752 parameters.)

    Args:
        widths: channels of the stages; the stem has as many as the first. Each stage but the first
            halves height and width.
        num_blocks: number of blocks of each stage.
        pre_activation: normalise before the convolutions, not after them.
        attention: attention layer at the end of each residual branch; None: none.
        drop_path: probability that a sample skips the last residual branch in training; earlier
            ones less, in proportion.
        in_channels: channels of the images.
        num_classes: number of classes.

    Raises:
        UserError: if `widths` and `num_blocks` differ in length.
    """

    def __init__(
        self,
        *,
        widths: Widths = (64, 128, 256, 512),
        num_blocks: NumBlocks = (2, 2, 2, 2),
        pre_activation: bool = False,
        attention: AttentionKind | None = None,
        drop_path: DropPath = 0.0,
        in_channels: int = 1,
        num_classes: int = NUM_CLASSES,
    ) -> None:
        super().__init__()
        if len(widths) != len(num_blocks):
            raise UserError(
                f"Expected `model.network.num_blocks` to have {len(widths)} values, as many as "
                f"model.network.widths, but got {len(num_blocks)}."
            )
        block = partial(PreActivationBlock if pre_activation else BasicBlock, attention=attention)
        self.stem = conv3x3(in_channels, widths[0])
        self.stem_norm = nn.Identity() if pre_activation else nn.BatchNorm2d(widths[0])
        self.stages = residual_stages(
            block, widths[0], widths, num_blocks, last_drop_path=drop_path
        )
        self.last_norm = nn.BatchNorm2d(widths[-1]) if pre_activation else nn.Identity()
        self.output = nn.Linear(widths[-1], num_classes)
        self.pre_activation = pre_activation
        initialize(self)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits. Four stages run at 28, 14, 7 and 4 pixels for images of 28."""
        x = self.stem(images)
        if not self.pre_activation:
            x = F.relu(self.stem_norm(x), inplace=True)
        x = self.stages(x)
        if self.pre_activation:
            x = F.relu(self.last_norm(x), inplace=True)
        return self.output(x.mean((2, 3)))
