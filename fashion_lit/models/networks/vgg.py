"""VGG with batch normalisation, for small images: Simonyan and Zisserman 2014.

https://arxiv.org/abs/1409.1556. The five blocks are the paper's. Three poolings instead of five
leave 3 x 3 pixels of 28, and a global mean and one linear layer replace the paper's three, which
hold 120 of its 138 million parameters.
"""

from typing import Literal

from torch import Tensor, nn

from fashion_lit.data.augment import Probability
from fashion_lit.data.sources.fashion_mnist import NUM_CLASSES
from fashion_lit.models.blocks import initialize

WIDTHS = (64, 128, 256, 512, 512)
NUM_POOLINGS = 3
Depth = Literal[11, 13, 16, 19]
# The paper's table 1, columns A, B, D and E: number of convolutions of each block.
NUM_CONVOLUTIONS: dict[Depth, tuple[int, ...]] = {
    11: (1, 1, 2, 2, 2),
    13: (2, 2, 2, 2, 2),
    16: (2, 2, 3, 3, 3),
    19: (2, 2, 4, 4, 4),
}


class VGG(nn.Module):
    """Images (B, in_channels, H, W) float -> logits (B, num_classes), any H and W from 8.

    Args:
        depth: number of layers with weights in the paper's network: 11, 13, 16 or 19.
        dropout: probability before the output layer.
        in_channels: channels of the images.
        num_classes: number of classes.
    """

    def __init__(
        self,
        *,
        depth: Depth = 16,
        dropout: Probability = 0.5,
        in_channels: int = 1,
        num_classes: int = NUM_CLASSES,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        blocks = zip(WIDTHS, NUM_CONVOLUTIONS[depth], strict=True)
        for block, (width, number) in enumerate(blocks):
            for _ in range(number):
                conv = nn.Conv2d(in_channels, width, 3, padding=1)
                layers += [conv, nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
                in_channels = width
            if block < NUM_POOLINGS:
                layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(in_channels, num_classes)
        initialize(self)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits. The blocks run at 28, 14, 7, 3 and 3 pixels for images of 28."""
        x = self.features(images)
        return self.output(self.dropout(x.mean((2, 3))))
