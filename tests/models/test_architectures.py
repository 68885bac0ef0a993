"""The networks of the literature: sizes, parameters, and equality with other implementations."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock as TorchvisionBlock

from fashion_lit.errors import UserError
from fashion_lit.models.networks.densenet import DenseNet
from fashion_lit.models.networks.fast_cnn import FastCNN
from fashion_lit.models.networks.mobilenet_v2 import MobileNetV2
from fashion_lit.models.networks.report_cnn import ReportCNN
from fashion_lit.models.networks.resnet9 import ResNet9
from fashion_lit.models.networks.resnet_small_stem import ResNetSmallStem
from fashion_lit.models.networks.vgg import VGG
from fashion_lit.models.networks.wide_resnet import WideResNet

Copy = Callable[[nn.Module, nn.Module], None]

RESNET20 = {"widths": (16, 32, 64), "num_blocks": (3, 3, 3)}
SMALL: dict[str, Callable[..., nn.Module]] = {
    "fast_cnn": lambda **kw: FastCNN(widths=[8, 16, 32, 64], **kw),
    "report_cnn": ReportCNN,
    "wide_resnet": lambda **kw: WideResNet(depth=16, width=1, dropout=0.3, drop_path=0.2, **kw),
    "resnet_small_stem": lambda **kw: ResNetSmallStem(widths=[8, 16, 32, 64], **kw),
    "resnet20": lambda **kw: ResNetSmallStem(**RESNET20, drop_path=0.2, **kw),
    "pre_activation": lambda **kw: ResNetSmallStem(**RESNET20, pre_activation=True, **kw),
    "densenet": lambda **kw: DenseNet(depth=22, growth_rate=4, **kw),
    "mobilenet_v2": lambda **kw: MobileNetV2(width=0.25, **kw),
    "vgg": lambda **kw: VGG(depth=11, **kw),
    "resnet9": lambda **kw: ResNet9(width=8, drop_path=0.2, **kw),
}


def num_parameters(build: Callable[[], nn.Module]) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in build().parameters())


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", SMALL)
def test_networks_take_sizes_channels_and_classes(name: str, channels: int) -> None:
    network = SMALL[name](in_channels=channels, num_classes=7)
    network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    for size in (16, 28, 64):
        images = torch.randn(2, channels, size, size).to(memory_format=torch.channels_last)
        logits = network.train()(images)
        assert logits.shape == (2, 7)
        assert logits.isfinite().all()
        network.zero_grad()
        logits.square().sum().backward()
        assert all(p.grad is not None for p in network.parameters())
        with torch.no_grad():
            first, again = network.eval()(images), network(images)
            assert torch.equal(first, again)
            torch.testing.assert_close(network(images[:1]), first[:1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        # As in the papers, on colour images of 10 classes; 100-12: "0.8M", 28-10: "36.5M".
        (lambda: WideResNet(in_channels=3), 36_479_194),
        (lambda: WideResNet(depth=40, width=4, in_channels=3), 8_949_210),  # "8.9M"
        (lambda: WideResNet(depth=16, width=8, in_channels=3), 10_961_370),  # "11.0M"
        (lambda: DenseNet(in_channels=3), 769_162),
        (lambda: DenseNet(), 768_730),
        (lambda: ResNetSmallStem(**RESNET20, in_channels=3), 269_722 + 2_752),  # "0.27M"
        (lambda: ResNet9(in_channels=3), 6_573_120),
    ],
)
def test_parameters_are_those_of_the_papers(build: Callable[[], nn.Module], expected: int) -> None:
    assert num_parameters(build) == expected


def test_parameters_are_those_of_torchvision() -> None:
    stem = 64 * 3 * (7 * 7 - 3 * 3)
    theirs = num_parameters(lambda: torchvision.models.resnet18(num_classes=10)) - stem
    assert num_parameters(lambda: ResNetSmallStem(in_channels=3)) == theirs
    theirs = num_parameters(lambda: torchvision.models.mobilenet_v2(num_classes=10))
    assert num_parameters(lambda: MobileNetV2(in_channels=3)) == theirs
    for depth in (11, 13, 16, 19):
        model = torchvision.models.get_model_builder(f"vgg{depth}_bn")
        theirs = num_parameters(lambda model=model: model().features)
        ours = num_parameters(lambda depth=depth: VGG(depth=depth, in_channels=3))
        assert ours == theirs + 512 * 10 + 10


def assert_equal_in_both_modes(ours: nn.Module, theirs: nn.Module, images: Tensor) -> None:
    """Compare logits and gradients, with the statistics of a batch and with running ones."""
    for mode in (True, False):
        expected, found = theirs.train(mode)(images), ours.train(mode)(images)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    pairs = zip(ours.parameters(), theirs.parameters(), strict=True)
    for output in (expected, found):
        output.square().sum().backward()
    for mine, other in pairs:
        torch.testing.assert_close(mine.grad, other.grad.reshape(mine.shape), rtol=1e-3, atol=1e-4)


def test_resnet18_equals_torchvisions_with_another_stem(copy_in_order: Copy) -> None:
    theirs = torchvision.models.ResNet(TorchvisionBlock, [1, 2, 1, 1], num_classes=10).double()
    theirs.conv1 = nn.Conv2d(1, 64, 3, padding=1, bias=False).double()
    theirs.maxpool = nn.Identity()  # type: ignore[assignment]
    ours = ResNetSmallStem(num_blocks=(1, 2, 1, 1)).double()
    copy_in_order(theirs, ours)
    assert_equal_in_both_modes(ours, theirs, torch.randn(2, 1, 18, 18).double())


def test_densenet_bc_equals_torchvisions_with_another_stem(copy_in_order: Copy) -> None:
    theirs = torchvision.models.DenseNet(12, (6, 6, 6), 24, num_classes=10)
    theirs.features.conv0 = nn.Conv2d(1, 24, 3, padding=1, bias=False)
    for name in ("norm0", "relu0", "pool0"):
        setattr(theirs.features, name, nn.Identity())
    ours = DenseNet(depth=40)
    copy_in_order(theirs, ours)
    assert_equal_in_both_modes(ours.double(), theirs.double(), torch.randn(2, 1, 28, 28).double())


def test_vgg_equals_torchvisions_features(copy_in_order: Copy) -> None:
    theirs = torchvision.models.vgg16_bn().features
    ours = VGG(in_channels=3)
    copy_in_order(theirs, ours.features)
    images = torch.randn(1, 3, 32, 32)
    layers = [layer for index, layer in enumerate(theirs.eval()) if index not in (33, 43)]
    assert sum(isinstance(layer, nn.MaxPool2d) for layer in layers) == 3  # the last two left out
    torch.testing.assert_close(ours.features.eval()(images), nn.Sequential(*layers)(images))


def plain_wide_resnet(state: dict[str, Tensor], images: Tensor, depth: int) -> Tensor:
    """Compute a wide residual network in training mode, as in the authors' functional code."""
    values = iter(state.values())

    def norm(x: Tensor) -> Tensor:
        weight, bias, _, _, _ = (next(values) for _ in range(5))
        return F.batch_norm(x, None, None, weight, bias, training=True)

    x = F.conv2d(images, next(values), padding=1)
    for stage in range(3):
        for block in range((depth - 4) // 6):
            stride = 2 if stage > 0 and block == 0 else 1
            activated = torch.relu(norm(x))
            conv1 = next(values)
            y = F.conv2d(activated, conv1, stride=stride, padding=1)
            y = F.conv2d(torch.relu(norm(y)), next(values), padding=1)
            if block == 0:  # changes the channels
                x = F.conv2d(activated, next(values), stride=stride)
            x = x + y
    x = torch.relu(norm(x))
    return F.linear(F.avg_pool2d(x, x.shape[2:]).flatten(1), next(values), next(values))


def test_wide_resnet_equals_the_authors_code() -> None:
    network = WideResNet(depth=16, width=2).double()
    images = torch.randn(3, 1, 28, 28).double()
    expected = plain_wide_resnet(network.state_dict(), images, depth=16)
    torch.testing.assert_close(network.train()(images), expected)


def test_the_pre_activation_kind_equals_a_wide_resnet_of_width_1(copy_in_order: Copy) -> None:
    wide = WideResNet(depth=22, width=1)
    network = ResNetSmallStem(**RESNET20, pre_activation=True)
    copy_in_order(wide, network)
    images = torch.randn(2, 1, 28, 28)
    assert torch.equal(network(images), wide(images))


def test_resnet9_halves_the_image_three_times() -> None:
    network = ResNet9(width=8)
    sizes = []
    for layer in (network.residual1, network.stage2, network.residual3):
        layer.register_forward_hook(lambda _, inputs, __: sizes.append(tuple(inputs[0].shape[1:])))
    network(torch.randn(2, 1, 28, 28))
    assert sizes == [(16, 14, 14), (16, 14, 14), (64, 3, 3)]


@pytest.mark.parametrize("network", [WideResNet, DenseNet])
def test_an_impossible_depth_is_refused(network: type[nn.Module]) -> None:
    with pytest.raises(UserError, match=r"depth` to be 6 n \+ 4, but got 30; use 28"):
        network(depth=30)


def test_unequal_numbers_of_stages_are_refused() -> None:
    with pytest.raises(UserError, match=r"`model.network.num_blocks` to have 4 values, .* got 2"):
        ResNetSmallStem(num_blocks=(2, 2))
