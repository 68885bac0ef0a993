"""Report B's network: three double convolutions and a four-layer head, 2,493,514 parameters.

The course report states 93.72 % test accuracy after 20 epochs of AdamW with OneCycleLR
(experiment=report_b).
"""

from functools import partial

import torch
from torch import Tensor, nn

from fashion_lit.data.augment import Probability
from fashion_lit.data.sources.fashion_mnist import NUM_CLASSES
from fashion_lit.models.attention import AttentionKind, attention


def double_convolution(
    in_channels: int, out_channels: int, dropout: float, kind: AttentionKind | None
) -> nn.Sequential:
    """Build two 3x3 convolutions followed by attention, if any, 2x2 max pooling and dropout."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 3, padding=1),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
        nn.Conv2d(out_channels, out_channels, 3, padding=1),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
        *([] if kind is None else [attention(kind, out_channels)]),
        nn.MaxPool2d(2),
        nn.Dropout(dropout),
    )


def dense(in_features: int, out_features: int, dropout: float) -> nn.Sequential:
    """Build a linear layer with batch normalisation, ReLU and dropout."""
    return nn.Sequential(
        nn.Linear(in_features, out_features),
        nn.BatchNorm1d(out_features),
        nn.ReLU(inplace=True),
        nn.Dropout(dropout),
    )


def mean_bins(x: Tensor, size: int) -> Tensor:
    """Average (B, C, H, W) over bins to (B, C, size, size), like adaptive average pooling.

    Replaces nn.AdaptiveAvgPool2d, which has no deterministic backward pass on CUDA. An input of
    `size` x `size` pixels is returned unchanged.
    """
    height, width = x.shape[2:]
    if (height, width) == (size, size):
        return x
    rows = [
        torch.stack([x[:, :, r, c].mean((2, 3)) for c in bins(width, size)], dim=2)
        for r in bins(height, size)
    ]
    return torch.stack(rows, dim=2)


def bins(length: int, number: int) -> list[slice]:
    """Divide range(length) into `number` slices that may overlap by one element."""
    return [slice(i * length // number, -(-(i + 1) * length // number)) for i in range(number)]


class ReportCNN(nn.Module):
    """Images (B, in_channels, H, W) float -> logits (B, num_classes).

    Args:
        block_dropout: dropout probability after each of the three convolution blocks.
        head_dropouts: dropout probability after each of the head's three hidden layers.
        attention: attention layer after the convolutions of each block, which the course report
            proposes; None: none, as in the course report.
        in_channels: channels of the images.
        num_classes: number of classes.
    """

    def __init__(
        self,
        *,
        block_dropout: Probability = 0.25,
        head_dropouts: tuple[Probability, Probability, Probability] = (0.5, 0.5, 0.3),
        attention: AttentionKind | None = None,
        in_channels: int = 1,
        num_classes: int = NUM_CLASSES,
    ) -> None:
        super().__init__()
        self.block1 = double_convolution(in_channels, 64, block_dropout, attention)
        self.block2 = double_convolution(64, 128, block_dropout, attention)
        self.block3 = double_convolution(128, 256, block_dropout, attention)
        self.pool = partial(mean_bins, size=3)  # the identity at 28 px; supports other image sizes
        self.flatten = nn.Flatten()
        self.dense1 = dense(256 * 3 * 3, 512, head_dropouts[0])
        self.dense2 = dense(512, 256, head_dropouts[1])
        self.dense3 = dense(256, 128, head_dropouts[2])
        self.output = nn.Linear(128, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits; the softmax of the course report's network is part of the loss."""
        x = self.block1(images)  # (B, 64, 14, 14) at 28 px
        x = self.block2(x)  # (B, 128, 7, 7)
        x = self.block3(x)  # (B, 256, 3, 3)
        x = self.pool(x)
        x = self.flatten(x)  # (B, 2304)
        x = self.dense1(x)
        x = self.dense2(x)
        x = self.dense3(x)
        return self.output(x)
