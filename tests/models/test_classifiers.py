"""ImageClassifier, tested through its two subclasses."""

import copy
import math
from pathlib import Path
from types import SimpleNamespace

import lightning as L
import pytest
import torch
import torchvision
from torch.nn import functional as F
from torch.optim.swa_utils import update_bn

from fashion_lit.data.datamodule import FashionMNISTDataModule
from fashion_lit.data.mixing import mixed_labels
from fashion_lit.data.randomness import generator
from fashion_lit.data.sources.synthetic import SyntheticGarments
from fashion_lit.errors import UserError
from fashion_lit.models.averaging import (
    recompute_statistics,
    statistics_batches,
    swa_epoch,
    trained_norms,
)
from fashion_lit.models.classifier import ImageClassifier
from fashion_lit.models.cnn import CNNClassifier
from fashion_lit.models.transfer import TransferClassifier, load_pretrained
from fashion_lit.runs.directory import RunDirectory

TINY = {"name": "fast_cnn", "widths": [8, 16, 32]}


def fit(classifier: L.LightningModule, num_epochs: int = 1, **arguments: object) -> L.Trainer:
    trainer = L.Trainer(
        max_epochs=num_epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        limit_train_batches=2,
        **arguments,  # type: ignore[arg-type]
    )
    source = SyntheticGarments(num_train=60, num_test=20)
    trainer.fit(
        classifier, FashionMNISTDataModule(source, batch_size=16, val_size=20, image_size=32)
    )
    return trainer


def test_forward_returns_logits_and_the_loss_matches_torch() -> None:
    weights = [float(1 + index) for index in range(10)]
    classifier = CNNClassifier(network=TINY, label_smoothing=0.1, class_weights=weights)
    images, labels = torch.randn(8, 1, 28, 28), torch.arange(8)
    logits = classifier(images)
    assert logits.shape == (8, 10)
    assert not torch.allclose(logits.sum(1), torch.ones(8))  # no softmax outside the loss
    expected = F.cross_entropy(logits, labels, weight=torch.tensor(weights), label_smoothing=0.1)
    assert torch.equal(classifier.loss(logits, labels), expected)


WEIGHTS = [0.5, 1.0, 2.0, 1.0, 1.0, 3.0, 1.0, 0.25, 1.0, 1.0]


def counted_loss(
    logits: torch.Tensor, shares: torch.Tensor, weights: list[float], smoothing: float
) -> torch.Tensor:
    """The loss of mixed labels, added up image by image and class by class in float64."""
    loss, total = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    for row, target in zip(logits.double(), shares.double(), strict=True):
        normalizer = torch.stack([value.exp() for value in row]).sum().log()
        for place, weight in enumerate(weights):
            smoothed = (1 - smoothing) * target[place] + smoothing / 10
            loss = loss - weight * smoothed * (row[place] - normalizer)
            total = total + weight * target[place]
    return loss / total


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_of_mixed_labels_matches_a_counting_loop(
    smoothing: float, weights: list[float] | None, dtype: torch.dtype
) -> None:
    classifier = CNNClassifier(network=TINY, label_smoothing=smoothing, class_weights=weights)
    logits = (3 * torch.randn(16, 10, generator=generator(0))).to(dtype).requires_grad_()
    shares = mixed_labels(torch.arange(16) % 10, torch.rand(16, generator=generator(1)), 10)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        loss = classifier.loss(logits, shares)
    assert loss.dtype == torch.float32
    expected = counted_loss(logits, shares, weights or [1.0] * 10, smoothing)
    assert float(loss) == pytest.approx(float(expected), rel=1e-5)
    (gradient,) = torch.autograd.grad(loss, logits)
    (counted,) = torch.autograd.grad(expected, logits)
    torch.testing.assert_close(gradient, counted, atol=1e-7, rtol=1e-2)


@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_shares_of_0_and_1_give_the_loss_of_the_class(weights: list[float] | None) -> None:
    classifier = CNNClassifier(network=TINY, label_smoothing=0.1, class_weights=weights)
    logits, labels = torch.randn(16, 10, generator=generator(0)), torch.arange(16) % 10
    loss = classifier.loss(logits, F.one_hot(labels, 10).float())
    torch.testing.assert_close(loss, classifier.loss(logits, labels))


@pytest.mark.parametrize(("limit", "moves"), [(None, True), (1e-6, False)])
def test_gradients_are_clipped_if_a_limit_is_set(limit: float | None, moves: bool) -> None:
    classifier = CNNClassifier(network=TINY, optimizer={"name": "sgd", "lr": 0.1})
    before = [parameter.clone() for parameter in classifier.network.parameters()]
    fit(classifier, gradient_clip_val=limit)
    moved = torch.stack(
        [(p - q).abs().max() for p, q in zip(classifier.network.parameters(), before, strict=True)]
    ).max()
    assert moved > 1e-3 if moves else 0 < moved < 1e-5


def test_checkpoint_rebuilds_the_classifier_by_itself(finished_run: RunDirectory) -> None:
    classifier = CNNClassifier.load_from_checkpoint(finished_run.best_checkpoint)
    state = torch.load(finished_run.best_checkpoint, weights_only=True)["state_dict"]
    assert classifier.network.state_dict().keys() == {
        key.removeprefix("network.") for key in state if key.startswith("network.")
    }
    assert classifier.optimizer == finished_run.config["optimizer"]


def test_evaluation_uses_the_averaged_weights_and_training_does_not() -> None:
    classifier = CNNClassifier(network=TINY, ema_decay=0.9)
    assert classifier.average is not None
    with torch.no_grad():
        for parameter in classifier.network.parameters():
            parameter.add_(1)
    images = torch.randn(4, 1, 28, 28)
    assert torch.equal(classifier.train()(images), classifier.network(images))
    classifier.eval()
    assert torch.equal(classifier(images), classifier.average(images))
    assert not torch.equal(classifier(images), classifier.network(images))


@pytest.mark.parametrize("kind", [CNNClassifier, TransferClassifier])
def test_the_average_follows_weights_and_statistics_every_few_steps(
    kind: type[ImageClassifier],
) -> None:
    torch.manual_seed(0)
    network = {"network": TINY} if kind is CNNClassifier else {"pretrained": False}
    classifier = kind(**network, ema_decay=0.9, optimizer={"name": "sgd", "lr": 0.1})  # type: ignore[arg-type]  # pyright: ignore[reportCallIssue, reportArgumentType]
    assert classifier.average is not None
    seen: list[dict[str, torch.Tensor]] = []

    class Watch(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, *_: object) -> None:
            state = classifier.network.state_dict()
            seen.append({key: value.clone() for key, value in state.items()})

    expected = {key: value.clone() for key, value in classifier.average.state_dict().items()}
    fit(classifier, num_epochs=6, callbacks=[Watch()])  # 12 steps
    assert len(seen) == 12
    for number, done in enumerate((5, 10), start=1):
        decay = min(0.9**5, (1 + number) / (10 + number))
        for key, value in seen[done - 1].items():
            if value.is_floating_point():
                expected[key] = decay * expected[key] + (1 - decay) * value
    for key, value in classifier.average.named_parameters():  # buffers are recomputed
        torch.testing.assert_close(value, expected[key], check_device=False)


def test_recomputed_statistics_match_torchs_update_bn() -> None:
    torch.manual_seed(0)
    network = CNNClassifier(network=TINY).network.train()
    batches = [torch.randn(16, 1, 28, 28) for _ in range(3)]
    network(batches[0])  # other statistics, to be replaced
    expected = copy.deepcopy(network)
    update_bn(batches, expected)
    network.eval()
    norms = trained_norms(network, network)
    assert len(norms) == 5  # stem, two stages, two residual layers
    recompute_statistics(network, norms, batches)
    assert not any(module.training for module in network.modules())
    assert {norm.momentum for norm in norms} == {0.1}
    for key, value in expected.state_dict().items():
        torch.testing.assert_close(network.state_dict()[key], value)


def test_the_average_is_validated_with_recomputed_statistics() -> None:
    torch.manual_seed(0)
    classifier = CNNClassifier(network=TINY, ema_decay=0.9, optimizer={"name": "sgd", "lr": 0.1})
    assert classifier.average is not None
    trainer = fit(classifier, num_epochs=2)
    expected = copy.deepcopy(classifier.average)
    datamodule = trainer.datamodule  # type: ignore[attr-defined]
    datamodule.position = (1, 1)  # must not change the batches
    images = list(statistics_batches(datamodule, torch.device("cpu")))
    assert [len(batch) for batch in images] == [16, 16, 8]  # all 40 training images
    update_bn(images, expected)
    for key, value in classifier.average.state_dict().items():
        torch.testing.assert_close(value, expected.state_dict()[key])


def test_statistics_of_a_frozen_backbone_stay() -> None:
    classifier = TransferClassifier(pretrained=False, freeze_backbone=True, ema_decay=0.9)
    assert classifier.average is not None
    before = copy.deepcopy(classifier.average.state_dict())
    fit(classifier)
    assert not trained_norms(classifier.average, classifier.network)
    for key, value in classifier.average.state_dict().items():
        if "running" in key:
            assert torch.equal(value, before[key])


def swa_classifier(**arguments: object) -> CNNClassifier:
    torch.manual_seed(0)
    optimizer = {"name": "sgd", "lr": 0.1, "norms_and_biases_lr_factor": 4.0}
    return CNNClassifier(
        network=TINY,
        swa_start=0.5,
        swa_lr_factor=0.3,
        optimizer=optimizer,
        scheduler={"name": "cosine", "warmup_epochs": 0.0},
        **arguments,  # type: ignore[arg-type]
    )


def test_swa_averages_the_last_epochs_at_a_constant_rate() -> None:
    classifier = swa_classifier()
    assert classifier.average is not None
    rates: list[list[float]] = []
    ends: list[dict[str, torch.Tensor]] = []
    evaluated: list[bool] = []

    class Watch(L.Callback):
        def on_train_batch_start(self, trainer: L.Trainer, *_: object) -> None:
            rates.append([group["lr"] for group in trainer.optimizers[0].param_groups])

        def on_validation_end(self, *_: object) -> None:
            state = classifier.network.state_dict()
            ends.append({key: value.clone() for key, value in state.items()})
            evaluated.append(classifier.evaluated is classifier.average)

    fit(classifier, num_epochs=6, callbacks=[Watch()])  # two steps an epoch
    cosine = [0.05 * (1 + math.cos(math.pi * step / 12)) for step in range(6)]
    assert [rate for rate, _ in rates] == pytest.approx([*cosine, *[0.03] * 6])
    assert [norms for _, norms in rates] == pytest.approx([4 * rate for rate, _ in rates])
    assert evaluated == [False, False, False, True, True, True]
    assert int(classifier.num_averaged) == 3
    for key, value in classifier.average.named_parameters():  # buffers are recomputed
        mean = torch.stack([end[key] for end in ends[3:]]).mean(0)
        torch.testing.assert_close(value, mean)


@pytest.mark.parametrize(("max_steps", "first", "count"), [(3, 1, 1), (7, 2, 2), (8, 2, 2)])
def test_swa_averages_the_epochs_before_max_steps(max_steps: int, first: int, count: int) -> None:
    classifier = swa_classifier()
    fit(classifier, num_epochs=100, max_steps=max_steps)  # two steps an epoch
    assert classifier.first_swa_epoch == first
    assert int(classifier.num_averaged) == count
    assert classifier.evaluated is classifier.average


@pytest.mark.parametrize(
    ("start", "num_epochs", "first"),
    [(0.0, 10, 0), (0.5, 10, 5), (0.75, 10, 8), (0.99, 10, 9), (0.99, 9.2, 9), (0.9, 0.4, 0)],
)
def test_swa_starts_after_a_share_of_the_epochs(
    start: float, num_epochs: float, first: int
) -> None:
    assert swa_epoch(start, num_epochs) == first


def test_schedules_count_whole_epochs_in_a_run_that_max_steps_ends() -> None:
    scheduler = {"name": "cosine", "warmup_epochs": 2.0}
    classifier = CNNClassifier(network=TINY, scheduler=scheduler)
    rates: list[float] = []

    class Watch(L.Callback):
        def on_train_batch_start(self, trainer: L.Trainer, *_: object) -> None:
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    fit(classifier, num_epochs=100, max_steps=6, callbacks=[Watch()])  # two steps an epoch
    assert rates[:4] == pytest.approx([1e-3 * (step + 1) / 5 for step in range(4)])
    assert rates[4] == pytest.approx(1e-3)


def test_unlimited_run_is_refused_for_a_schedule_that_needs_an_end() -> None:
    classifier = CNNClassifier(
        network=TINY,
        optimizer={"name": "sgd", "lr": 0.1},
        scheduler={"name": "one_cycle"},
    )
    with pytest.raises(UserError, match="Expected a limited run for scheduler=one_cycle"):
        fit(classifier, num_epochs=-1)


def test_transfer_replaces_the_head_and_keeps_pretrained_layers(tmp_path: Path) -> None:
    donor = torchvision.models.resnet18(weights=None)
    file = tmp_path / "weights.pth"
    torch.save(donor.state_dict(), file)
    torch.manual_seed(1)
    classifier = TransferClassifier(weights=str(file), reinit_stem=True)
    before = {key: value.clone() for key, value in classifier.network.state_dict().items()}
    classifier.copy_weights(load_pretrained("resnet18", str(file)))
    after = classifier.network.state_dict()
    assert classifier.network.fc.weight.shape == (10, 512)  # type: ignore[union-attr]
    assert torch.equal(after["conv1.weight"], before["conv1.weight"])  # starts from scratch
    assert torch.equal(after["fc.weight"], before["fc.weight"])
    for key in ("layer1.0.conv1.weight", "bn1.running_var", "layer4.1.bn2.bias"):
        assert torch.equal(after[key], donor.state_dict()[key])
    classifier = TransferClassifier(weights=str(file))
    classifier.copy_weights(load_pretrained("resnet18", str(file)))
    stem = classifier.network.state_dict()["conv1.weight"]
    assert torch.equal(stem, donor.state_dict()["conv1.weight"])


@pytest.mark.parametrize(
    ("backbone", "head", "stem"),
    [("resnet18", "fc.", "conv1."), ("mobilenet_v3_small", "classifier.3.", "features.0.0.")],
)
def test_pretrained_weights_are_loaded_when_a_fit_starts(
    backbone: str, head: str, stem: str, tmp_path: Path
) -> None:
    donor = torchvision.models.get_model(backbone)
    file = tmp_path / "weights.pth"
    torch.save(donor.state_dict(), file)
    for grey_stem in ("repeat", "sum"):
        classifier = TransferClassifier(
            backbone=backbone, weights=str(file), freeze_backbone=True, grey_stem=grey_stem
        )
        fit(classifier)
        after, before = classifier.network.state_dict(), donor.state_dict()
        if grey_stem == "sum":
            before[f"{stem}weight"] = before[f"{stem}weight"].sum(1, keepdim=True)
        frozen = {key for key in after if not key.startswith(head)}
        assert all(torch.equal(after[key], before[key]) for key in frozen)


def test_frozen_backbone_trains_from_the_unfreeze_epoch_on(tmp_path: Path) -> None:
    torch.manual_seed(0)
    classifier = TransferClassifier(pretrained=False, freeze_backbone=True, unfreeze_epoch=1)
    start = {key: value.clone() for key, value in classifier.network.state_dict().items()}
    fit(classifier, num_epochs=1)
    after_frozen = {key: value.clone() for key, value in classifier.network.state_dict().items()}
    assert torch.equal(after_frozen["layer1.0.conv1.weight"], start["layer1.0.conv1.weight"])
    assert torch.equal(after_frozen["bn1.running_mean"], start["bn1.running_mean"])
    assert not torch.equal(after_frozen["fc.weight"], start["fc.weight"])
    fit(classifier, num_epochs=2)
    after = classifier.network.state_dict()
    assert not torch.equal(after["layer1.0.conv1.weight"], start["layer1.0.conv1.weight"])
    assert not torch.equal(after["bn1.running_mean"], start["bn1.running_mean"])


def test_weights_of_another_architecture_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "weights.pth"
    torch.save(torchvision.models.resnet34(weights=None).state_dict(), file)
    classifier = TransferClassifier(backbone="resnet50", weights=str(file))
    with pytest.raises(UserError, match=r"weights of a resnet50, but .* missing or"):
        classifier.copy_weights(load_pretrained("resnet50", str(file)))


def test_unreadable_weights_are_named(tmp_path: Path) -> None:
    file = tmp_path / "weights.pth"
    file.write_text("not weights")
    with pytest.raises(UserError, match=r"`model.weights` to be a state dict .*weights\.pth canno"):
        load_pretrained("resnet18", str(file))
    with pytest.raises(UserError, match=r"cannot be read \(FileNotFoundError"):
        load_pretrained("resnet18", str(tmp_path / "absent.pth"))
    torch.save([1, 2], file)
    with pytest.raises(UserError, match="holds a list"):
        load_pretrained("resnet18", str(file))


def test_failed_download_names_the_file_and_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    entry = torchvision.models.ResNet18_Weights.DEFAULT
    offline = SimpleNamespace(
        url=entry.url.replace("https://download.pytorch.org", "http://127.0.0.1:9")
    )
    offline.get_state_dict = lambda **kw: torch.hub.load_state_dict_from_url(offline.url, **kw)
    monkeypatch.setattr(torchvision.models, "get_model_weights", lambda name: {"DEFAULT": offline})
    with pytest.raises(UserError) as caught:
        load_pretrained("resnet18", None)
    text = str(caught.value)
    assert "resnet18-f37072fd.pth could not be downloaded" in text
    assert f"put that file into {tmp_path / 'checkpoints'}" in text
    assert "model.pretrained=false" in text


def test_a_resnet_takes_grey_images_as_three_equal_channels() -> None:
    classifier = TransferClassifier(pretrained=False, ema_decay=0.9).eval()
    images = torch.randn(2, 1, 32, 32)
    with torch.no_grad():
        for network in (classifier, classifier.network.eval(), classifier.average):
            assert torch.equal(network(images), network(images.repeat(1, 3, 1, 1)))
