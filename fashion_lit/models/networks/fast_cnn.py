"""A small residual CNN, the default: beats report B's CNN in minutes on two CPU cores.

The stages run at a half, a quarter and an eighth of the image's height and width. Early stages have
few channels, because large feature maps take most of the time. In the stem, and in the middle
stages with `early_pool`, max pooling directly follows the convolution, so that the layers after it
process a quarter of the pixels.
"""

from itertools import pairwise
from typing import Annotated, Literal

from pydantic import Field, PositiveInt
from torch import Tensor, nn

from fashion_lit.data.fashion_mnist import NUM_CLASSES
from fashion_lit.errors import UserError

LOGIT_SCALE = 0.125  # keeps the initial logits small under max pooling, as in airbench
Widths = Annotated[tuple[PositiveInt, ...], Field(min_length=2)]
Activation = Literal["relu", "gelu", "silu"]
KernelSize = Literal[1, 3]
ACTIVATIONS: dict[Activation, type[nn.Module]] = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,  # Hendrycks and Gimpel 2016, https://arxiv.org/abs/1606.08415
    "silu": nn.SiLU,
}


class ConvNormActivation(nn.Module):
    """A convolution, optional 2x2 max pooling, batch normalisation and an activation."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        activation: Activation,
        *,
        kernel_size: KernelSize = 3,
        pool: bool = False,
    ) -> None:
        super().__init__()
        padding = kernel_size // 2
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, padding=padding, bias=False)
        self.pool = nn.MaxPool2d(2) if pool else nn.Identity()
        self.norm = nn.BatchNorm2d(out_channels)
        self.activation = ACTIVATIONS[activation]()

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_channels, H, W) to (B, out_channels, H or H / 2, W or W / 2)."""
        x = self.conv(x)
        x = self.pool(x)
        x = self.norm(x)
        return self.activation(x)


class Residual(nn.Module):
    """A residual block with one layer, instead of the two of He et al. 2015.

    https://arxiv.org/abs/1512.03385
    """

    def __init__(self, channels: int, activation: Activation, kernel_size: KernelSize) -> None:
        super().__init__()
        self.layer = ConvNormActivation(channels, channels, activation, kernel_size=kernel_size)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, channels, H, W) to the same shape."""
        return x + self.layer(x)


class GlobalMaxPool(nn.Module):
    """The maximum of each channel. `amax` is equivalent, but its backward pass is slow."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, channels, H, W) to (B, channels)."""
        return nn.functional.max_pool2d(x, x.shape[2:]).flatten(1)


class FastCNN(nn.Sequential):
    """Images (B, 1, H, W) -> logits (B, 10).

    Args:
        widths: channels of the stem and of each stage. The stem and all stages but the last halve
            height and width.
        activation: activation after each normalisation.
        last_kernel_size: kernel size of the last stage's residual layer. Its feature map has few
            pixels, so that a size of 3 takes longer for little benefit.
        early_pool: in the stages between the first and the last, pool directly after the
            convolution, so that normalisation, activation and residual layer process a quarter of
            the pixels.
    """

    def __init__(
        self,
        *,
        widths: Widths,
        activation: Activation = "relu",
        last_kernel_size: KernelSize = 3,
        early_pool: bool = False,
    ) -> None:
        super().__init__()
        num_stages = len(widths) - 1
        self.stem = ConvNormActivation(1, widths[0], activation, pool=True)
        for stage, (narrow, wide) in enumerate(pairwise(widths), start=1):
            last = stage == num_stages
            pool = early_pool and stage > 1 and not last
            layer = ConvNormActivation(narrow, wide, activation, pool=pool)
            self.add_module(f"stage{stage}", layer)
            kernel_size = last_kernel_size if last else 3
            self.add_module(f"residual{stage}", Residual(wide, activation, kernel_size))
            if not (last or pool):
                self.add_module(f"pool{stage}", nn.MaxPool2d(2))
        self.pool = GlobalMaxPool()
        self.output = nn.Linear(widths[-1], NUM_CLASSES, bias=False)
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
