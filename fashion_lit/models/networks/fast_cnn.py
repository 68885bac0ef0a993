"""A small residual CNN, the default: beats report B's CNN in minutes on two CPU cores.

The stages run at a half, a quarter and an eighth of the image's height and width. Early stages have
few channels, because large feature maps take most of the time. In the stem, and in the middle
stages with `early_pool`, max pooling directly follows the convolution, so that the layers after it
process a quarter of the pixels.
"""

from itertools import pairwise
from typing import Literal

from torch import Tensor, nn

from fashion_lit.data.sources.fashion_mnist import NUM_CLASSES
from fashion_lit.errors import UserError
from fashion_lit.models.attention import AttentionKind
from fashion_lit.models.blocks import (
    LOGIT_SCALE,
    Activation,
    ConvNormActivation,
    DropPath,
    GlobalMaxPool,
    Widths,
    branch_end,
    drop_path_probabilities,
)

KernelSize = Literal[1, 3]


class Residual(nn.Module):
    """A residual block with one layer, instead of the two of He et al. 2015.

    https://arxiv.org/abs/1512.03385
    """

    def __init__(
        self,
        channels: int,
        activation: Activation,
        kernel_size: KernelSize,
        attention: AttentionKind | None,
        drop_path: float,
    ) -> None:
        super().__init__()
        self.layer = ConvNormActivation(channels, channels, activation, kernel_size=kernel_size)
        self.branch_end = branch_end(channels, attention, drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, channels, H, W) to the same shape."""
        return x + self.branch_end(self.layer(x))


class FastCNN(nn.Sequential):
    """Images (B, in_channels, H, W) float -> logits (B, num_classes).

    Args:
        widths: channels of the stem and of each stage. The stem and all stages but the last halve
            height and width.
        activation: activation after each normalisation.
        last_kernel_size: kernel size of the last stage's residual layer. Its feature map has few
            pixels, so that a size of 3 takes longer for little benefit.
        early_pool: in the stages between the first and the last, pool directly after the
            convolution, so that normalisation, activation and residual layer process a quarter of
            the pixels.
        attention: attention layer at the end of each residual branch; None: none.
        drop_path: probability that a sample skips the last residual branch in training; earlier
            ones less, in proportion.
        in_channels: channels of the images.
        num_classes: number of classes.
    """

    def __init__(
        self,
        *,
        widths: Widths,
        activation: Activation = "relu",
        last_kernel_size: KernelSize = 3,
        early_pool: bool = False,
        attention: AttentionKind | None = None,
        drop_path: DropPath = 0.0,
        in_channels: int = 1,
        num_classes: int = NUM_CLASSES,
    ) -> None:
        super().__init__()
        num_stages = len(widths) - 1
        drop_paths = drop_path_probabilities(drop_path, num_stages)
        self.stem = ConvNormActivation(in_channels, widths[0], activation, pool=True)
        for stage, (narrow, wide) in enumerate(pairwise(widths), start=1):
            last = stage == num_stages
            pool = early_pool and stage > 1 and not last
            layer = ConvNormActivation(narrow, wide, activation, pool=pool)
            self.add_module(f"stage{stage}", layer)
            kernel_size = last_kernel_size if last else 3
            residual = Residual(wide, activation, kernel_size, attention, drop_paths[stage - 1])
            self.add_module(f"residual{stage}", residual)
            if not (last or pool):
                self.add_module(f"pool{stage}", nn.MaxPool2d(2))
        self.pool = GlobalMaxPool()
        self.output = nn.Linear(widths[-1], num_classes, bias=False)
        self.smallest_size = 2**num_stages  # in pixels; leaves one pixel in the last stage

    def forward(self, images: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return the logits; raise UserError if the images are too small for the stages."""
        height, width = images.shape[2:]
        if min(height, width) < self.smallest_size:
            raise UserError(
                f"Expected images of at least {self.smallest_size} x {self.smallest_size} pixels, "
                f"but got {height} x {width}; raise data.image_size, or give "
                "model.network.widths fewer stages."
            )
        # At 28 px the stem outputs 14 x 14, stage 1 outputs 7 x 7, stage 2 outputs 3 x 3.
        return LOGIT_SCALE * super().forward(images)
