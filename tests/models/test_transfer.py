"""TransferClassifier over the families of torchvision's classification networks."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import nn

from fashion_lit.data.sources.fashion_mnist import FashionMNIST
from fashion_lit.models.build import check_network
from fashion_lit.models.transfer import (
    BACKBONES,
    TransferClassifier,
    check_backbone,
    load_pretrained,
    set_frozen,
)

# Backbone, stem and head.
FAMILIES = [
    ("alexnet", "features.0", "classifier.6"),
    ("convnext_tiny", "features.0.0", "classifier.2"),
    ("densenet121", "features.conv0", "classifier"),
    ("efficientnet_b0", "features.0.0", "classifier.1"),
    ("mobilenet_v2", "features.0.0", "classifier.1"),
    ("mobilenet_v3_small", "features.0.0", "classifier.3"),
    ("regnet_y_400mf", "stem.0", "fc"),
    ("resnext50_32x4d", "conv1", "fc"),
    ("shufflenet_v2_x0_5", "conv1.0", "fc"),
    ("squeezenet1_1", "features.0", "classifier.1"),
    ("swin_t", "features.0.0", "head"),
    ("vgg11_bn", "features.0", "classifier.6"),
    ("vit_b_32", "conv_proj", "heads.head"),
    ("wide_resnet50_2", "conv1", "fc"),
]
NAMES = [name for name, _, _ in FAMILIES]


def device_of(backbone: str) -> torch.device:
    """Return the meta device, for speed, unless the network reads values when it is built."""
    return torch.device("cpu" if backbone.startswith("regnet") else "meta")


def config_of(backbone: str, image_size: int) -> dict[str, Any]:
    model = {"name": "transfer", "backbone": backbone}
    return {"model": model, "data": {"batch_size": 64, "image_size": image_size}}


@pytest.mark.parametrize("grey_stem", ["repeat", "sum"])
@pytest.mark.parametrize(("backbone", "stem", "head"), FAMILIES, ids=NAMES)
def test_stem_and_head_are_found_in_every_family(
    backbone: str, stem: str, head: str, grey_stem: Any
) -> None:
    config = config_of(backbone, 224 if backbone.startswith("vit") else 64)
    config["model"]["grey_stem"] = grey_stem
    num_weights = check_network(config, FashionMNIST())  # a forward pass
    with device_of(backbone):
        classifier = TransferClassifier(backbone=backbone, grey_stem=grey_stem)
        theirs = torchvision.models.get_model(backbone)
    network = classifier.network
    assert (classifier.stem, classifier.new_layers) == (stem, (head,))
    old = theirs.get_submodule(head)
    new = network.get_submodule(head)
    assert type(new) is type(old)
    assert new.weight.shape == (10, *old.weight.shape[1:])  # type: ignore[union-attr, operator]
    expected = sum(p.numel() for p in theirs.parameters())
    expected -= 990 * (old.weight[0].numel() + 1)  # type: ignore[operator, index, union-attr]
    stem_shape = network.get_submodule(stem).weight.shape  # type: ignore[union-attr, operator]
    assert stem_shape[1] == (3 if grey_stem == "repeat" else 1)
    if grey_stem == "sum":
        expected -= 2 * stem_shape[0] * stem_shape[2] * stem_shape[3]
    assert num_weights == sum(p.numel() for p in network.parameters()) == expected


def test_every_classification_network_of_torchvision_is_a_backbone() -> None:
    listed = torchvision.models.list_models(torchvision.models)
    assert set(listed) - set(BACKBONES) == {"googlenet", "inception_v3"}
    for name in listed:
        if name in BACKBONES:
            assert check_backbone(name) == name
        else:
            with pytest.raises(ValueError, match="a classification network of torchvision"):
                check_backbone(name)


@pytest.mark.parametrize("reinit_stem", [False, True])
@pytest.mark.parametrize(("backbone", "stem", "head"), FAMILIES, ids=NAMES)
def test_a_frozen_network_trains_its_new_layers_only(
    backbone: str, stem: str, head: str, reinit_stem: bool
) -> None:
    with device_of(backbone):
        network = TransferClassifier(backbone=backbone, reinit_stem=reinit_stem).network.train()
    new_layers = (head, stem) if reinit_stem else (head,)
    set_frozen(network, frozen=True, except_for=new_layers)
    trained = {n.rpartition(".")[0] for n, p in network.named_parameters() if p.requires_grad}
    assert trained == set(new_layers)
    leaves = {n: m for n, m in network.named_modules() if not list(m.children())}
    assert {name for name, module in leaves.items() if module.training} == set(new_layers)
    set_frozen(network, frozen=False, except_for=new_layers)
    assert all(parameter.requires_grad for parameter in network.parameters())
    assert all(module.training for module in network.modules())


@pytest.mark.parametrize("backbone", ["convnext_tiny", "mobilenet_v3_small", "resnet18"])
def test_summed_filters_give_the_features_of_a_repeated_image(
    backbone: str, tmp_path: Path
) -> None:
    donor = torchvision.models.get_model(backbone)
    torch.manual_seed(0)
    with torch.no_grad():  # small whole numbers, whose sums are exact
        stem = next(module for module in donor.modules() if isinstance(module, nn.Conv2d))
        stem.weight.copy_(torch.randint(-8, 9, stem.weight.shape))
    file = tmp_path / "weights.pth"
    torch.save(donor.state_dict(), file)
    pair = [TransferClassifier(backbone=backbone, grey_stem=kind) for kind in ("repeat", "sum")]
    for classifier in pair:
        classifier.copy_weights(load_pretrained(backbone, str(file)))
    repeated, summed = (classifier.eval().network for classifier in pair)
    head = pair[0].new_layers[0]
    summed.get_submodule(head).load_state_dict(repeated.get_submodule(head).state_dict())
    images = torch.randint(-4, 5, (2, 1, 32, 32)).float()
    stems = [n.get_submodule(c.stem) for n, c in zip((repeated, summed), pair, strict=True)]
    assert torch.equal(stems[0](images.repeat(1, 3, 1, 1)), stems[1](images))
    logits = repeated(images)
    assert torch.equal(logits, repeated(images.repeat(1, 3, 1, 1)))
    torch.testing.assert_close(summed(images), logits)
    own = summed.state_dict()
    for key, value in donor.state_dict().items():
        if key == f"{pair[0].stem}.weight":
            assert torch.equal(own[key], value.sum(1, keepdim=True))
        elif key.rpartition(".")[0] != head:
            assert torch.equal(own[key], value), key


def test_colour_images_enter_the_stem_as_they_are() -> None:
    names = ("a", "b", "c", "d")
    torch.manual_seed(0)
    classifier = TransferClassifier(
        backbone="squeezenet1_1", in_channels=3, class_names=names, grey_stem="sum"
    )
    torch.manual_seed(0)
    theirs = torchvision.models.squeezenet1_1()
    assert classifier.network.get_submodule("features.0").weight.shape == (64, 3, 3, 3)
    images = torch.randn(2, 3, 32, 32)
    features = classifier.eval().network.get_submodule("features")(images)
    torch.testing.assert_close(features, theirs.eval().features(images))
    assert classifier(images).shape == (2, 4)


def test_a_reinitialised_stem_inside_a_container_keeps_its_draw(tmp_path: Path) -> None:
    file = tmp_path / "weights.pth"
    donor = torchvision.models.squeezenet1_1()
    torch.save(donor.state_dict(), file)
    classifier = TransferClassifier(backbone="squeezenet1_1", reinit_stem=True)
    before = {key: value.clone() for key, value in classifier.network.state_dict().items()}
    classifier.copy_weights(load_pretrained("squeezenet1_1", str(file)))
    for key, value in classifier.network.state_dict().items():
        new = key.startswith(("features.0.", "classifier.1."))
        assert torch.equal(value, before[key] if new else donor.state_dict()[key]), key
