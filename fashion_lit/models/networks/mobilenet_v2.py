"""MobileNetV2 for small images: Sandler et al. 2018, https://arxiv.org/abs/1801.04381.

It is torchvision's network with strides of 1 in the stem and in the second stage, so that images of
28 pixels end in 4 x 4 features, not in one pixel.
"""

from typing import Annotated, Any

import torchvision
from pydantic import Field
from torch import nn

from fashion_lit.data.augment import Probability
from fashion_lit.data.sources.fashion_mnist import NUM_CLASSES
from fashion_lit.models.blocks import conv3x3

# The paper's table 2: expansion, channels, number of blocks, stride of the first.
STAGES = [
    [1, 16, 1, 1],
    [6, 24, 2, 1],  # a stride of 2 in the paper
    [6, 32, 3, 2],
    [6, 64, 4, 2],
    [6, 96, 3, 1],
    [6, 160, 3, 2],
    [6, 320, 1, 1],
]


class MobileNetV2(torchvision.models.MobileNetV2):
    """Images (B, in_channels, H, W) float -> logits (B, num_classes), of any size.

    Args:
        width: factor on the channels of all layers, rounded to multiples of 8.
        dropout: probability before the output layer.
        in_channels: channels of the images.
        num_classes: number of classes.
    """

    def __init__(
        self,
        *,
        width: Annotated[float, Field(gt=0, le=10)] = 1.0,
        dropout: Probability = 0.2,
        in_channels: int = 1,
        num_classes: int = NUM_CLASSES,
    ) -> None:
        super().__init__(
            num_classes=num_classes,
            width_mult=width,
            inverted_residual_setting=STAGES,
            dropout=dropout,
        )
        stem: Any = self.features[0]
        stem[0] = conv3x3(in_channels, stem[0].out_channels)
        nn.init.kaiming_normal_(stem[0].weight, mode="fan_out")
