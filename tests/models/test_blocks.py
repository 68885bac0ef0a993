"""Attention, stochastic depth and residual blocks, against other implementations."""

import math
from collections.abc import Callable, Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import SqueezeExcitation as TorchvisionSqueezeExcitation

from fashion_lit.models import attention as attentions
from fashion_lit.models.attention import AttentionKind, attention
from fashion_lit.models.blocks import drop_path, drop_path_probabilities, residual_stages
from fashion_lit.models.networks.fast_cnn import FastCNN
from fashion_lit.models.networks.report_cnn import ReportCNN
from fashion_lit.models.networks.resnet9 import ResNet9
from fashion_lit.models.networks.resnet_small_stem import ResNetSmallStem
from fashion_lit.models.networks.wide_resnet import WideResNet

KINDS: Sequence[AttentionKind] = ("se", "cbam", "eca")


def test_squeeze_excitation_matches_torchvisions(
    copy_in_order: Callable[[nn.Module, nn.Module], None],
) -> None:
    x = torch.randn(3, 64, 5, 7, requires_grad=True)
    theirs = TorchvisionSqueezeExcitation(64, 4)
    ours = attention("se", 64)
    copy_in_order(theirs, ours)
    for module in (ours, theirs):
        x.grad = None
        module(x).square().sum().backward()
        module.gradient = x.grad  # type: ignore[assignment]
    torch.testing.assert_close(ours(x), theirs(x))
    torch.testing.assert_close(ours.gradient, theirs.gradient)


@pytest.mark.parametrize(("channels", "size"), [(16, 3), (64, 3), (128, 5), (256, 5), (512, 5)])
def test_eca_matches_the_paper(channels: int, size: int) -> None:
    # Equation 12: the odd number next to (log2 C) / 2 + 1 / 2. The authors' tables use 3 and 5.
    layer = attention("eca", channels)
    assert layer.conv.weight.shape == (1, 1, size)  # type: ignore[union-attr]
    x = torch.randn(2, channels, 4, 3)
    kernel = layer.conv.weight.flatten().tolist()  # type: ignore[union-attr, operator]
    means = x.mean((2, 3))
    expected = torch.empty_like(x)
    for image in range(len(x)):
        for channel in range(channels):
            total = 0.0
            for place, weight in enumerate(kernel):
                neighbour = channel + place - size // 2
                if 0 <= neighbour < channels:
                    total += weight * means[image, neighbour].item()
            expected[image, channel] = x[image, channel] / (1 + math.exp(-total))
    torch.testing.assert_close(layer(x), expected)


def test_cbam_matches_the_paper() -> None:
    layer = attention("cbam", 64)
    assert isinstance(layer, attentions.CBAM)
    layer.norm.running_mean.fill_(0.3)  # type: ignore[union-attr]
    layer.norm.running_var.fill_(2.0)  # type: ignore[union-attr]
    layer.eval()
    x = torch.randn(2, 64, 9, 8)
    w0, w1 = layer.reduce.weight, layer.expand.weight

    def hidden(pooled: Tensor) -> Tensor:
        return torch.relu(pooled @ w0.T) @ w1.T

    # Equations 1 to 3: F' = Mc(F) F, F'' = Ms(F') F'
    flat = x.flatten(2)
    by_channel = torch.sigmoid(hidden(flat.mean(2)) + hidden(flat.max(2).values))
    refined = x * by_channel.view(2, 64, 1, 1)
    two = torch.stack([refined.mean(1), refined.max(1).values], 1)
    padded = F.pad(two, (3, 3, 3, 3))
    windows = padded.unfold(2, 7, 1).unfold(3, 7, 1)  # (B, 2, H, W, 7, 7)
    by_pixel = torch.einsum("bchwij,cij->bhw", windows, layer.conv.weight[0])
    by_pixel = torch.sigmoid((by_pixel - 0.3) / math.sqrt(2 + layer.norm.eps))
    torch.testing.assert_close(layer(x), refined * by_pixel[:, None])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "network",
    [
        lambda **kw: FastCNN(widths=[8, 16, 32], **kw),
        ReportCNN,
        lambda **kw: ResNetSmallStem(widths=[8, 16], num_blocks=[1, 1], **kw),
        lambda **kw: ResNetSmallStem(widths=[8, 16], num_blocks=[1, 1], pre_activation=True, **kw),
        lambda **kw: WideResNet(depth=10, width=1, **kw),
        lambda **kw: ResNet9(width=4, **kw),
    ],
)
def test_attention_is_in_every_block_and_trains(network: type[nn.Module], kind: str) -> None:
    plain, weighed = network(), network(attention=kind)
    kinds = tuple(attentions.KINDS.values())
    assert not any(isinstance(module, kinds) for module in plain.modules())
    layers = [m for m in weighed.modules() if isinstance(m, attentions.KINDS[kind])]  # type: ignore[index]
    num_blocks = {FastCNN: 2, ReportCNN: 3, ResNetSmallStem: 2, WideResNet: 3, ResNet9: 2}
    assert len(layers) == num_blocks[type(plain)]  # type: ignore[index]
    assert set(plain.state_dict()) < set(weighed.state_dict())
    weighed(torch.randn(4, 1, 28, 28)).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in weighed.parameters())


def test_drop_path_zeroes_samples_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    x = torch.ones(4000, 2, 1, 1)
    layer = drop_path(0.25)
    out = layer.train()(x)
    assert torch.equal(out[:, 0], out[:, 1])  # whole samples
    assert set(out.unique().tolist()) == {0.0, torch.tensor(1 / 0.75).item()}
    assert abs(out.mean() - 1) < 0.03  # four standard errors
    assert torch.equal(layer.eval()(x), x)
    assert isinstance(drop_path(0.0), nn.Identity)


def test_drop_path_rises_linearly_over_the_blocks() -> None:
    assert drop_path_probabilities(0.4, 4) == pytest.approx([0.1, 0.2, 0.3, 0.4])
    seen = []

    def block(in_channels: int, width: int, *, stride: int, drop_path: float) -> nn.Module:
        seen.append((in_channels, width, stride, round(drop_path, 2)))
        return nn.Identity()

    residual_stages(block, 3, [4, 8], [2, 1], last_drop_path=0.3)
    assert seen == [(3, 4, 1, 0.1), (4, 4, 1, 0.2), (4, 8, 2, 0.3)]


def test_a_dropped_block_is_its_shortcut() -> None:
    network = ResNetSmallStem(widths=[8, 16], num_blocks=[1, 1], pre_activation=True)
    block = network.stages[0][0]  # type: ignore[index]
    x = torch.randn(64, 8, 6, 6)
    torch.manual_seed(0)
    expected = block(x)
    block.branch_end.append(drop_path(0.5))
    torch.manual_seed(0)
    changed = block(x)
    skipped = [bool(torch.equal(a, b)) for a, b in zip(changed, x, strict=True)]
    assert 10 < sum(skipped) < 54
    kept = ~torch.tensor(skipped)
    torch.testing.assert_close(changed[kept] - x[kept], 2 * (expected - x)[kept])
