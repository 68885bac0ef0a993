"""Building blocks that several networks share."""

from collections.abc import Callable, Sequence
from typing import Annotated, Literal

import torch.nn.functional as F
from pydantic import Field, PositiveInt
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from fashion_lit.errors import UserError
from fashion_lit.models.attention import AttentionKind, attention

LOGIT_SCALE = 0.125  # keeps the initial logits small under max pooling, as in airbench
Widths = Annotated[tuple[PositiveInt, ...], Field(min_length=2)]
Depth = Annotated[int, Field(ge=10, le=1000)]
DropPath = Annotated[float, Field(ge=0, lt=1)]
Activation = Literal["relu", "gelu", "silu"]
ACTIVATIONS: dict[Activation, type[nn.Module]] = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,  # Hendrycks and Gimpel 2016, https://arxiv.org/abs/1606.08415
    "silu": nn.SiLU,
}


def drop_path(probability: float) -> nn.Module:
    """Return stochastic depth: it zeroes a residual branch for some samples of a training batch.

    The kept branches are scaled by 1 / (1 - probability). Like dropout, it draws from torch's
    default generator. Huang et al. 2016, https://arxiv.org/abs/1603.09382
    """
    return StochasticDepth(probability, "row") if probability else nn.Identity()


def drop_path_probabilities(last: float, num_blocks: int) -> list[float]:
    """Return each block's drop probability, which rises linearly to `last`, as in the paper."""
    return [last * number / num_blocks for number in range(1, num_blocks + 1)]


def initialize(network: nn.Module) -> None:
    """Initialise all 2-D convolutions as in He et al. 2015, https://arxiv.org/abs/1502.01852.

    The variance is 2 / fan-out. Biases start at 0.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def conv3x3(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    """Build a 3x3 convolution without a bias, for a normalisation to follow."""
    return nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)


def conv1x1(in_channels: int, out_channels: int) -> nn.Conv2d:
    """Build a 1x1 convolution without a bias."""
    return nn.Conv2d(in_channels, out_channels, 1, bias=False)


class Subsample(nn.Module):
    """Every `stride`-th row and column: with a 1x1 convolution, the same as its stride.

    On CPUs, the backward pass of a strided 1x1 convolution of fewer than 16 channels may write past
    its memory, a bug of oneDNN.
    """

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C, H / stride, W / stride), rounded up."""
        return x[:, :, :: self.stride, :: self.stride]


class GlobalMaxPool(nn.Module):
    """The maximum of each channel. `amax` is equivalent, but its backward pass is slow."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, channels, H, W) to (B, channels)."""
        return F.max_pool2d(x, x.shape[2:]).flatten(1)


class ConvNormActivation(nn.Module):
    """A convolution, optional 2x2 max pooling, batch normalisation and an activation."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        activation: Activation,
        *,
        kernel_size: Literal[1, 3] = 3,
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


class BasicBlock(nn.Module):
    """The residual block of two 3x3 convolutions: He et al. 2015.

    https://arxiv.org/abs/1512.03385

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        stride: of the first convolution: 2 halves height and width, rounded up.
        attention: kind of attention layer at the end of the branch; None: none.
        drop_path: probability that a sample skips the branch in training.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        stride: int,
        attention: AttentionKind | None,
        drop_path: float,
    ) -> None:
        super().__init__()
        self.conv1 = conv3x3(in_channels, out_channels, stride)
        self.norm1 = nn.BatchNorm2d(out_channels)
        self.conv2 = conv3x3(out_channels, out_channels)
        self.norm2 = nn.BatchNorm2d(out_channels)
        self.branch_end = branch_end(out_channels, attention, drop_path)
        self.shortcut = nn.Sequential()
        if stride > 1 or in_channels != out_channels:
            self.shortcut.append(Subsample(stride))
            self.shortcut.append(conv1x1(in_channels, out_channels))
            self.shortcut.append(nn.BatchNorm2d(out_channels))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_channels, H, W) to (B, out_channels, H / stride, W / stride), rounded up."""
        branch = F.relu(self.norm1(self.conv1(x)), inplace=True)
        branch = self.branch_end(self.norm2(self.conv2(branch)))
        return F.relu(branch + self.shortcut(x), inplace=True)


class PreActivationBlock(nn.Module):
    """The residual block that normalises before each convolution: He et al. 2016.

    https://arxiv.org/abs/1603.05027

    Args:
        in_channels: see BasicBlock.
        out_channels: see BasicBlock.
        stride: see BasicBlock.
        attention: see BasicBlock.
        drop_path: see BasicBlock.
        dropout: probability between the convolutions, as in wide residual networks.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        stride: int,
        attention: AttentionKind | None,
        drop_path: float,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(in_channels)
        self.conv1 = conv3x3(in_channels, out_channels, stride)
        self.norm2 = nn.BatchNorm2d(out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = conv3x3(out_channels, out_channels)
        self.branch_end = branch_end(out_channels, attention, drop_path)
        self.projection = None
        if stride > 1 or in_channels != out_channels:
            self.projection = nn.Sequential(Subsample(stride), conv1x1(in_channels, out_channels))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_channels, H, W) to (B, out_channels, H / stride, W / stride), rounded up."""
        activated = F.relu(self.norm1(x), inplace=True)
        shortcut = x if self.projection is None else self.projection(activated)
        branch = F.relu(self.norm2(self.conv1(activated)), inplace=True)
        return shortcut + self.branch_end(self.conv2(self.dropout(branch)))


def branch_end(channels: int, kind: AttentionKind | None, probability: float) -> nn.Sequential:
    """Build the end of a residual branch: attention, then stochastic depth, where asked for."""
    layers = (attention(kind, channels), drop_path(probability))
    return nn.Sequential(*(layer for layer in layers if not isinstance(layer, nn.Identity)))


def num_blocks_at_depth(depth: int) -> int:
    """Return n, the blocks of each of three stages, of a network of depth 6 n + 4.

    Raises UserError for another depth.
    """
    if depth % 6 != 4:
        raise UserError(
            f"Expected `model.network.depth` to be 6 n + 4, but got {depth}; use "
            f"{depth - (depth - 4) % 6}."
        )
    return (depth - 4) // 6


def residual_stages(
    block: Callable[..., nn.Module],
    in_channels: int,
    widths: Sequence[int],
    num_blocks: Sequence[int],
    *,
    last_drop_path: float,
) -> nn.Sequential:
    """Build stages of residual blocks; each stage but the first halves height and width.

    Args:
        block: builds a block from in_channels, out_channels, `stride` and `drop_path`.
        in_channels: channels of the stem.
        widths: channels of each stage.
        num_blocks: number of blocks of each stage.
        last_drop_path: see `drop_path_probabilities`.
    """
    probabilities = iter(drop_path_probabilities(last_drop_path, sum(num_blocks)))
    stages = []
    for stage, (width, number) in enumerate(zip(widths, num_blocks, strict=True)):
        blocks = []
        for place in range(number):
            stride = 2 if stage and not place else 1
            blocks.append(block(in_channels, width, stride=stride, drop_path=next(probabilities)))
            in_channels = width
        stages.append(nn.Sequential(*blocks))
    return nn.Sequential(*stages)
