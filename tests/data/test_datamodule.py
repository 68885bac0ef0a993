import hashlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fashion_lit.benchmarking.timing import kernels_restored
from fashion_lit.data.augment import Augment
from fashion_lit.data.batches import EvalBatches, TrainBatches, to_input
from fashion_lit.data.classes import class_quotas
from fashion_lit.data.datamodule import FashionMNISTDataModule
from fashion_lit.data.sources.fashion_mnist import FashionMNIST
from fashion_lit.data.sources.folder import ImageFolder
from fashion_lit.data.sources.synthetic import SyntheticGarments
from fashion_lit.data.split import stratified_split
from fashion_lit.errors import UserError
from fashion_lit.models.averaging import statistics_batches

BALANCED = torch.arange(60000) % 10


def build(**arguments: object) -> FashionMNISTDataModule:
    settings = {"batch_size": 32, "eval_batch_size": 40, "val_size": 100} | arguments
    source = SyntheticGarments(num_train=300, num_test=101)
    datamodule = FashionMNISTDataModule(source, **settings)  # type: ignore[arg-type]
    datamodule.setup()
    return datamodule


def test_split_is_48000_and_12000_disjoint_and_stratified() -> None:
    train, val = stratified_split(BALANCED, 12000, split_seed=0)
    assert (len(train), len(val)) == (48000, 12000)
    assert torch.equal(torch.cat([train, val]).sort().values, torch.arange(60000))
    assert BALANCED[train].bincount().tolist() == [4800] * 10
    assert BALANCED[val].bincount().tolist() == [1200] * 10


def test_split_of_real_labels_is_the_same_on_every_machine(real_data: FashionMNIST) -> None:
    labels = real_data.load()[0].labels
    train, val = stratified_split(labels, 12000, split_seed=0)
    assert labels[val].bincount().tolist() == [1200] * 10
    assert not set(train.tolist()) & set(val.tolist())
    assert (
        hashlib.sha256(val.numpy().astype("<i8").tobytes()).hexdigest()
        == "dfaf2ec74f22db1539847d222e609df2385cd2c412216548252eb1ca6f4db621"
    )


def test_split_of_drawn_labels_is_the_same_on_every_machine() -> None:
    _, val = stratified_split(BALANCED, 12000, split_seed=0)
    assert (
        hashlib.sha256(val.numpy().astype("<i8").tobytes()).hexdigest()
        == "1576b7cffe94638a4054c30e8dc1a13d6c9403881bc718070b6ce4997cde8df3"
    )
    assert not torch.equal(val, stratified_split(BALANCED, 12000, split_seed=1)[1])


@pytest.mark.parametrize("val_size", [1, 7, 1234, 59999])
def test_split_is_proportional_to_within_one_image(val_size: int) -> None:
    uneven = torch.cat([BALANCED, torch.zeros(333, dtype=torch.int64)])
    train, val = stratified_split(uneven, val_size, split_seed=0)
    assert len(val) == val_size
    assert len(train) == len(uneven) - val_size
    shares = uneven.bincount(minlength=10) * val_size / len(uneven)
    assert float((uneven[val].bincount(minlength=10) - shares).abs().max()) < 1


def test_val_size_must_leave_images_to_train_on() -> None:
    with pytest.raises(UserError, match=r"`data.val_size` to be smaller than the 300 .* got 300\."):
        build(val_size=300)


def test_to_input_normalises_with_the_data_sets_own_mean_and_std() -> None:
    images = torch.tensor([[[0, 255]]], dtype=torch.uint8)
    plain = to_input(images, image_size=2, normalize=False)
    assert plain.amin() == 0
    assert plain.amax() == 1
    pixels = torch.full((1, 4, 4), 73, dtype=torch.uint8)  # 73 / 255 is close to the mean
    normal = to_input(pixels, image_size=4, normalize=True)
    assert normal.shape == (1, 1, 4, 4)
    assert float(normal.abs().max()) < 0.01


def test_to_input_resizes_like_torchvision() -> None:
    from torchvision.transforms import functional

    images = torch.randint(0, 256, (2, 28, 28), dtype=torch.uint8)
    ours = to_input(images, image_size=64, normalize=False)
    expected = functional.resize(images[:, None].float() / 255, [64, 64])
    assert ours.shape == (2, 1, 64, 64)
    torch.testing.assert_close(ours, expected)


def epoch_labels(batches: TrainBatches) -> Tensor:
    return torch.cat([labels for _, labels in batches])


def test_order_and_augmentation_depend_on_seed_and_epoch_alone() -> None:
    augment = Augment(flip=0.5, shift=2)
    one, again = (build(seed=3, augment=augment).train_dataloader() for _ in range(2))
    for _ in one:  # earlier draws have no effect
        pass
    for batches in (one, again):
        batches.sampler.set_epoch(5)
    for (images, labels), (other_images, other_labels) in zip(one, again, strict=True):
        assert torch.equal(images, other_images)
        assert torch.equal(labels, other_labels)
    again.sampler.set_epoch(6)
    assert not torch.equal(epoch_labels(one), epoch_labels(again))
    other_seed = build(seed=4, augment=augment).train_dataloader()
    other_seed.sampler.set_epoch(5)
    assert not torch.equal(epoch_labels(one), epoch_labels(other_seed))


def test_an_epoch_draws_every_training_image_once() -> None:
    datamodule = build()
    seen = torch.cat([images for images, _ in datamodule.train_dataloader()])
    expected = datamodule.to_input(datamodule.train.images[datamodule.train_indices])
    assert len(datamodule.train_dataloader()) == 7  # 200 images in batches of 32
    assert seen.flatten(1).sum(1).sort().values.equal(expected.flatten(1).sum(1).sort().values)


def test_overfitting_repeats_the_same_batches() -> None:
    batches = TrainBatches(build(), same_every_epoch=True)
    first = epoch_labels(batches)
    batches.sampler.set_epoch(1)
    assert torch.equal(epoch_labels(batches), first)


def test_a_last_batch_of_one_image_is_omitted() -> None:
    batches = build(batch_size=199).train_dataloader()
    assert [len(labels) for _, labels in batches] == [199]
    assert len(batches) == 1


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 7])
def test_ranks_share_an_epoch_evenly_without_repeating_an_image(num_ranks: int) -> None:
    datamodule = build()
    shares = [TrainBatches(datamodule, rank, num_ranks) for rank in range(num_ranks)]
    assert len({len(share) for share in shares}) == 1
    images = torch.cat([images for share in shares for images, _ in share])
    assert len(torch.unique(images, dim=0)) == len(images) == 200 // num_ranks * num_ranks


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 7])
@pytest.mark.parametrize("eval_batch_size", [1, 13, 1000])
def test_evaluation_counts_every_image_once_in_equally_many_batches(
    num_ranks: int, eval_batch_size: int
) -> None:
    datamodule = build(eval_batch_size=eval_batch_size)
    shares = [
        EvalBatches(datamodule, datamodule.images_of("test"), rank, num_ranks)
        for rank in range(num_ranks)
    ]
    counts = [sum(1 for _ in share) for share in shares]
    assert counts == [len(share) for share in shares] == [counts[0]] * num_ranks
    images = torch.cat([images for share in shares for images, _ in share])
    assert len(torch.unique(images, dim=0)) == len(images) == 101
    assert max(len(labels) for share in shares for _, labels in share) <= eval_batch_size


def test_validate_on_test_trains_on_all_training_images() -> None:
    datamodule = build(validate_on_test=True)
    assert sum(len(labels) for _, labels in datamodule.train_dataloader()) == 300
    labels = torch.cat([labels for _, labels in datamodule.val_dataloader()])
    assert torch.equal(labels, datamodule.test.labels)


def test_images_follow_the_training_device_and_cuda_is_refused_without_one() -> None:
    datamodule = build()
    datamodule.trainer = SimpleNamespace(  # type: ignore[assignment]
        strategy=SimpleNamespace(root_device=torch.device("meta"))
    )
    datamodule.setup()
    assert datamodule.train.images.device.type == "meta"
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match=r"data\.device=cuda, but PyTorch finds none; use"):
            build(device="cuda")


def test_resizing_uses_the_same_operators_in_deterministic_mode() -> None:
    class Operations(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.names: list[str] = []

        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            self.names.append(str(func))
            return func(*args, **(kwargs or {}))

    images = torch.zeros(2, 28, 28, dtype=torch.uint8, device="meta")  # as on a GPU
    listed = []
    for deterministic in (True, False):
        with kernels_restored(), Operations() as operations:
            torch.use_deterministic_algorithms(deterministic)
            x = to_input(images, image_size=224, normalize=False)
        assert x.shape == (2, 1, 224, 224)
        listed.append(operations.names)
    assert listed[0] == listed[1]


@pytest.mark.parametrize("size", [32, 224, 14])
def test_resizing_matches_interpolate(size: int) -> None:
    images = torch.randint(0, 256, (2, 28, 28), dtype=torch.uint8)
    x = images[:, None].float() / 255
    expected = F.interpolate(x, size=size, mode="bilinear", antialias=size < 28)
    resized = to_input(images, image_size=size, normalize=False)
    assert torch.equal(resized, expected)


def test_the_cpu_waits_for_a_batch_and_a_gpu_does_not() -> None:
    class Moved:
        def to(self, device: torch.device, *, non_blocking: bool) -> tuple[str, bool]:
            return str(device), non_blocking

    data = build()
    for device, overlap in (("cpu", False), ("cuda:0", True)):
        batch: Any = (Moved(), Moved())
        moved = data.transfer_batch_to_device(batch, torch.device(device), 0)
        assert moved == ((device, overlap), (device, overlap))


def test_fewer_training_images_are_stratified_and_leave_the_validation_images_alone() -> None:
    whole, few, more = build(), build(train_size=50), build(train_size=100)
    assert torch.equal(few.val_indices, whole.val_indices)
    chosen = [set(data.train_indices.tolist()) for data in (few, more, whole)]
    assert list(map(len, chosen)) == [50, 100, 200]
    assert chosen[0] < chosen[1] < chosen[2]
    assert few.train.labels[few.train_indices].bincount().tolist() == [5] * 10
    assert torch.equal(build(train_size=50).train_indices, few.train_indices)
    assert not torch.equal(build(train_size=50, split_seed=1).train_indices, few.train_indices)
    assert torch.equal(build(train_size=200).train_indices, whole.train_indices)
    assert len(build(train_size=50, validate_on_test=True).train_indices) == 50
    with pytest.raises(UserError, match="at most the 200 images that are left to train on"):
        build(train_size=201)


STRONG: dict[str, Any] = {
    "rotate": 10.0,
    "random_erase": 0.5,
    "mixup": [0.2, 0.25],
    "cutmix": [1.0, 0.5],
    "until_epoch": 3,
}


def test_a_mixed_epoch_resumes_at_any_batch() -> None:
    batches = build(seed=3, augment=Augment(**STRONG)).train_dataloader()
    whole = list(batches.draw(epoch=2))
    assert all(labels.shape == (len(images), 10) for images, labels in whole)
    assert all(labels.shape == (len(images),) for images, labels in batches.draw(epoch=3))
    for first in (1, 5):
        rest = build(seed=3, augment=Augment(**STRONG)).train_dataloader().draw(2, first)
        for batch, again in zip(whole[first:], rest, strict=True):
            assert all(torch.equal(*pair) for pair in zip(batch, again, strict=True))


def test_statistics_of_the_average_are_mixed_as_long_as_the_epochs_are() -> None:
    data = build(augment=Augment(**STRONG))
    first, last, clean = (
        torch.cat(list(statistics_batches(data, torch.device("cpu"), epoch))) for epoch in (0, 2, 3)
    )
    assert torch.equal(first, last)
    data.augment = Augment(**STRONG | {"mixup": 0.0, "cutmix": 0.0})
    unmixed = list(statistics_batches(data, torch.device("cpu")))
    assert torch.equal(clean, torch.cat(unmixed))
    assert not torch.equal(clean, first)


@pytest.mark.parametrize("num_ranks", [1, 3])
def test_an_epoch_with_class_sampling_keeps_its_length(num_ranks: int) -> None:
    weights = [1.0] * 6 + [3.0] + [1.0] * 3
    data = build(class_sampling=weights)
    shares = [TrainBatches(data, rank, num_ranks) for rank in range(num_ranks)]
    labels = torch.cat([epoch_labels(share) for share in shares])
    assert len(labels) == 200 // num_ranks * num_ranks
    if num_ranks == 1:
        assert labels.bincount().tolist() == class_quotas(data.train_labels, weights)
        assert int((labels == 6).sum()) == 50  # 200 x 3 / 12
    assert all(len(share) == len(TrainBatches(build(), 0, num_ranks)) for share in shares)


def test_training_batches_have_their_pixels_if_asked() -> None:
    datamodule = build(image_size=32, augment=Augment(shift=2, cutmix=1.0))
    plain = list(datamodule.train_dataloader())
    datamodule.with_pixels = True
    for (images, labels), (*batch, pixels) in zip(
        plain, datamodule.train_dataloader(), strict=True
    ):
        assert all(map(torch.equal, batch, (images, labels)))
        assert torch.equal(to_input(pixels, image_size=32, normalize=True), images)
    assert all(len(batch) == 2 for batch in datamodule.val_dataloader())


def test_validation_images_may_be_a_share() -> None:
    assert torch.equal(build(val_size=1 / 3).val_indices, build(val_size=100).val_indices)
    assert build(val_size=0.0001).val_size == 1


def test_a_class_without_training_images_is_refused_before_training() -> None:
    few = build(train_size=9)
    assert len(few.images_of("val").labels) == 100  # a run of an earlier version is evaluated
    with pytest.raises(UserError, match="images of all 10 classes among the 9 to train on, but"):
        few.train_dataloader()


def test_colour_is_normalised_by_the_channels_of_the_training_images(picture_folder: Path) -> None:
    source = ImageFolder(root=str(picture_folder), size=12)
    data = FashionMNISTDataModule(source, batch_size=16, val_size=0.2)
    data.setup()
    assert data.class_names == ("Red car", "blau", "green")
    inputs = data.to_input(data.train.images)
    assert inputs.shape == (90, 3, 12, 12)
    torch.testing.assert_close(inputs.mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(inputs.std((0, 2, 3)), torch.ones(3), atol=1e-3, rtol=0)
    larger = FashionMNISTDataModule(source, batch_size=16, val_size=0.2, image_size=24)
    larger.setup()
    assert larger.to_input(larger.test.images).shape == (15, 3, 24, 24)
    assert larger.fingerprint == data.fingerprint


def test_augmentation_knows_the_classes_of_the_data(picture_folder: Path) -> None:
    source = ImageFolder(root=str(picture_folder), size=12)
    with pytest.raises(UserError, match="`class_names` of the augmentation to be those of colours"):
        FashionMNISTDataModule(source, batch_size=16, val_size=0.2, augment=Augment(flip=0.5))
    augment = Augment(cutmix=1.0, classes=["green"], flip=1.0, class_names=source.class_names)
    data = FashionMNISTDataModule(source, batch_size=16, val_size=0.2, augment=augment)
    data.setup()
    images, labels = next(iter(data.train_dataloader()))
    assert images.shape == (16, 3, 12, 12)
    assert labels.shape == (16, 3)
