import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fashion_lit.data.sources.fashion_mnist import FashionMNIST
from fashion_lit.errors import UserError
from fashion_lit.models import networks
from fashion_lit.models.build import check_network
from fashion_lit.models.cnn import CNNClassifier
from fashion_lit.models.networks.fast_cnn import FastCNN, GlobalMaxPool
from fashion_lit.models.networks.report_cnn import ReportCNN, mean_bins
from fashion_lit.parts.arguments import keyword_fields


def test_report_cnn_has_2493514_parameters() -> None:
    network = ReportCNN()
    assert sum(parameter.numel() for parameter in network.parameters()) == 2_493_514
    assert all(parameter.requires_grad for parameter in network.parameters())


def test_report_cnn_has_the_reports_layers_in_order() -> None:
    leaves = [m for m in ReportCNN().modules() if not list(m.children())]
    kinds = {
        nn.Conv2d: "conv", nn.BatchNorm2d: "norm", nn.ReLU: "relu", nn.MaxPool2d: "pool",
        nn.Dropout: "drop", nn.Flatten: "", nn.Linear: "linear",
        nn.BatchNorm1d: "norm",
    }  # fmt: skip
    layers = [kinds[type(leaf)] for leaf in leaves if kinds[type(leaf)]]
    block = ["conv", "norm", "relu"] * 2 + ["pool", "drop"]
    assert layers == block * 3 + ["linear", "norm", "relu", "drop"] * 3 + ["linear"]
    assert [m.p for m in leaves if isinstance(m, nn.Dropout)] == [0.25] * 3 + [0.5, 0.5, 0.3]
    widths = [(m.in_features, m.out_features) for m in leaves if isinstance(m, nn.Linear)]
    assert widths == [(2304, 512), (512, 256), (256, 128), (128, 10)]


def test_report_cnns_pooling_is_the_identity_at_28_pixels() -> None:
    features = torch.randn(2, 256, 3, 3)
    assert torch.equal(ReportCNN().pool(features), features)


@pytest.mark.parametrize("image_size", [28, 32, 64])
@pytest.mark.parametrize("network", [ReportCNN(), FastCNN(widths=[8, 16, 32])])
def test_networks_take_any_image_size(network: nn.Module, image_size: int) -> None:
    assert network(torch.randn(2, 1, image_size, image_size)).shape == (2, 10)


def test_fast_cnn_adds_a_stage_for_each_width() -> None:
    layers = [name for name, _ in FastCNN(widths=[8, 16, 32, 64]).named_children()]
    stages = "stage1 residual1 pool1 stage2 residual2 pool2 stage3 residual3"
    assert layers == ["stem", *stages.split(), "pool", "output"]


@pytest.mark.parametrize(("early_pool", "size"), [(False, 7), (True, 3)])
def test_early_pooling_leaves_the_middle_residual_layer_fewer_pixels(
    early_pool: bool, size: int
) -> None:
    network = FastCNN(widths=[8, 16, 32, 64], early_pool=early_pool)
    sizes = []
    for layer in (network.residual1, network.residual2, network.residual3):
        layer.register_forward_hook(lambda _, inputs, __: sizes.append(tuple(inputs[0].shape[2:])))
    network(torch.randn(2, 1, 28, 28))
    assert sizes == [(14, 14), (size, size), (3, 3)]


def test_only_the_last_residual_layer_has_the_last_kernel_size() -> None:
    network = FastCNN(widths=[8, 16, 32, 64], last_kernel_size=1)
    convolutions = [(n, m) for n, m in network.named_modules() if isinstance(m, nn.Conv2d)]
    assert [n for n, m in convolutions if m.kernel_size == (1, 1)] == ["residual3.layer.conv"]
    assert network(torch.randn(2, 1, 28, 28)).shape == (2, 10)


def test_global_max_pool_is_the_maximum() -> None:
    x = torch.randn(2, 3, 5, 4)
    assert torch.equal(GlobalMaxPool()(x), x.amax((2, 3)))


def test_an_image_too_small_for_the_stages_is_refused() -> None:
    network = FastCNN(widths=[8, 16, 32, 64])
    assert network(torch.randn(2, 1, 8, 8)).shape == (2, 10)
    with pytest.raises(UserError, match="at least 8 x 8 pixels, but got 7 x 9; raise data"):
        network(torch.randn(2, 1, 7, 9))


def test_a_network_is_found_by_its_file_name() -> None:
    assert networks.network_class("report_cnn") is ReportCNN
    assert set(networks.NAMES) >= {"fast_cnn", "report_cnn"}


def test_a_new_network_needs_one_file_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_net.py").write_text(
        "from torch import nn\n"
        "class Block(nn.Linear): pass\n"
        "class MyNet(nn.Sequential):\n"
        "    def __init__(self, width: int = 8, depth=1): super().__init__(Block(width, 10))\n"
    )
    (tmp_path / "empty_net.py").write_text("from torch.nn import Linear\n")
    monkeypatch.setattr(networks, "__path__", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "fashion_lit.models.networks.my_net", raising=False)
    network = networks.network_class("my_net")
    assert network.__name__ == "MyNet"
    fields = keyword_fields(network, positional_too=True)
    assert fields == {"width": (int, 8), "depth": (Any, 1)}
    with pytest.raises(UserError, match=r"empty_net\.py to define a network, .* defines none"):
        networks.network_class("empty_net")


def colours() -> FashionMNIST:
    """A source of images in colour, in three classes."""
    source = FashionMNIST()
    source.channels, source.class_names, source.image_size = 3, ("a", "b", "c"), 32  # type: ignore[misc]
    return source


@pytest.mark.parametrize("name", networks.NAMES)
def test_networks_take_the_channels_and_classes_of_the_images(name: str) -> None:
    needed = {"widths": [4, 8, 8, 8]} if name == "fast_cnn" else {}
    model = {"name": "cnn", "network": {"name": name, **needed}}
    config: dict[str, Any] = {"model": model, "data": {"batch_size": 8, "image_size": None}}
    num_weights = check_network(config, colours())
    with torch.device("meta"):
        classifier = CNNClassifier(network=model["network"], in_channels=3, class_names="abc")
    assert num_weights == sum(p.numel() for p in classifier.network.parameters())
    assert classifier.class_names == ("a", "b", "c")


def test_a_network_with_another_number_of_logits_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("fashion_lit.models.networks.network_class", lambda name: ReadsValues)
    config = {"model": {"name": "cnn", "network": {"name": "own", "size": 11}}}
    with pytest.raises(
        UserError, match=r"logits of 10 classes, \(2, 10\) for .* returns \(2, 11\)"
    ):
        check_network(config | {"data": {"batch_size": 8, "image_size": 28}}, FashionMNIST())


@pytest.mark.parametrize("size", [1, 2, 3, 4, 7, 10, 28])
def test_mean_bins_match_torchs_adaptive_pooling(size: int) -> None:
    images = torch.randn(2, 5, size, size + size % 2, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(2, 5, 3, 3, dtype=torch.float64)
    found, gradients = [], []
    for pooled in (mean_bins(images, 3), nn.AdaptiveAvgPool2d(3)(images)):
        found.append(pooled)
        gradients += torch.autograd.grad((pooled * weights).sum(), images)
    torch.testing.assert_close(found[0], found[1])
    torch.testing.assert_close(gradients[0], gradients[1])


class ReadsValues(nn.Module):
    """Reads a value, which the meta device does not have."""

    def __init__(self, *, size: int) -> None:
        super().__init__()
        self.output = nn.Linear(28 * 28, size)

    def forward(self, images: Tensor) -> Tensor:
        if images.sum().item() > 1:
            raise AssertionError
        return self.output(images.flatten(1))


class Unfinished(nn.Module):
    """Has no forward."""

    def __init__(self, *, size: int) -> None:
        super().__init__()
        self.size = size


def test_a_network_that_reads_values_is_tried_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def config(size: int) -> dict[str, Any]:
        model = {"name": "cnn", "network": {"name": "own", "size": size}}
        return {"model": model, "data": {"batch_size": 8, "image_size": 28}}

    state = torch.get_rng_state()
    monkeypatch.setattr("fashion_lit.models.networks.network_class", lambda name: ReadsValues)
    assert check_network(config(10), FashionMNIST()) == 28 * 28 * 10 + 10
    assert torch.equal(torch.get_rng_state(), state)
    monkeypatch.setattr("fashion_lit.models.networks.network_class", lambda name: Unfinished)
    with pytest.raises(UserError, match=r"Expected a network for images of 28 x 28 pixels, but: "):
        check_network(config(11), FashionMNIST())
