"""Attention, stochastic depth and residual blocks, against other implementations."""

from collections.abc import Callable, Sequence

import pytest
import torch
from timm.layers import EcaModule
from timm.layers.cbam import CbamModule
from torch import nn
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
def test_eca_has_the_papers_kernel_sizes(channels: int, size: int) -> None:
    # Equation 12: the odd number next to (log2 C) / 2 + 1 / 2. The authors' tables use 3 and 5.
    assert attention("eca", channels).conv.weight.shape == (1, 1, size)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("kind", "timms"), [("eca", EcaModule(64)), ("cbam", CbamModule(64, 1 / 16))]
)
def test_attention_matches_timms(
    kind: AttentionKind, timms: nn.Module, copy_in_order: Callable[[nn.Module, nn.Module], None]
) -> None:
    torch.manual_seed(0)
    ours = attention(kind, 64)
    for parameter in ours.parameters():
        nn.init.normal_(parameter)  # so that no weight is 0 or 1
    copy_in_order(ours, timms)
    for _ in range(2):  # in training mode, with the batch's statistics; then with the running ones
        x = torch.randn(3, 64, 9, 8, requires_grad=True)
        outputs = [module(x) for module in (ours, timms)]
        torch.testing.assert_close(*outputs)
        gradients = [torch.autograd.grad(y.square().sum(), x)[0] for y in outputs]
        torch.testing.assert_close(*gradients)
        ours.eval()
        timms.eval()


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
