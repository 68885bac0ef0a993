"""ResNet-9: a wide and shallow residual network that trains in few epochs.

Page 2018, "How to train your ResNet", https://myrtle.ai/learn/how-to-train-your-resnet/. With width
64 it is the article's, of 6.6 M parameters.
"""

from pydantic import PositiveInt
from torch import Tensor, nn

from fashion_lit.data.sources.fashion_mnist import NUM_CLASSES
from fashion_lit.models.attention import AttentionKind
from fashion_lit.models.blocks import (
    LOGIT_SCALE,
    ConvNormActivation,
    DropPath,
    GlobalMaxPool,
    branch_end,
    drop_path_probabilities,
    initialize,
)


class TwoLayers(nn.Module):
    """A residual block of two layers, each with its activation."""

    def __init__(self, channels: int, attention: AttentionKind | None, drop_path: float) -> None:
        super().__init__()
        self.layer1 = ConvNormActivation(channels, channels, "relu")
        self.layer2 = ConvNormActivation(channels, channels, "relu")
        self.branch_end = branch_end(channels, attention, drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, channels, H, W) to the same shape."""
        return x + self.branch_end(self.layer2(self.layer1(x)))


class ResNet9(nn.Module):
    """Images (B, in_channels, H, W) float -> logits (B, num_classes), any H and W from 8.

    Args:
        width: channels of the stem; the stages have 2, 4 and 8 times as many.
        attention: attention layer at the end of the two residual branches; None: none.
        drop_path: probability that a sample skips the last residual branch in training; the first
            half of it.
        in_channels: channels of the images.
        num_classes: number of classes.
    """

    def __init__(
        self,
        *,
        width: PositiveInt = 64,
        attention: AttentionKind | None = None,
        drop_path: DropPath = 0.0,
        in_channels: int = 1,
        num_classes: int = NUM_CLASSES,
    ) -> None:
        super().__init__()
        first, last = drop_path_probabilities(drop_path, 2)
        self.stem = ConvNormActivation(in_channels, width, "relu")
        self.stage1 = ConvNormActivation(width, 2 * width, "relu", pool=True)
        self.residual1 = TwoLayers(2 * width, attention, first)
        self.stage2 = ConvNormActivation(2 * width, 4 * width, "relu", pool=True)
        self.stage3 = ConvNormActivation(4 * width, 8 * width, "relu", pool=True)
        self.residual3 = TwoLayers(8 * width, attention, last)
        self.pool = GlobalMaxPool()
        self.output = nn.Linear(8 * width, num_classes, bias=False)
        initialize(self)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits. The stages run at 14, 7 and 3 pixels for images of 28."""
        x = self.stem(images)
        x = self.residual1(self.stage1(x))
        x = self.stage2(x)
        x = self.residual3(self.stage3(x))
        return LOGIT_SCALE * self.output(self.pool(x))
