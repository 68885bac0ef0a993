"""The benchmark: both sides do the same work, and its counts are correct. No timings."""

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader
from torchvision.datasets import FashionMNIST
from torchvision.transforms import Compose, Grayscale, Resize, ToTensor

from fashion_lit.benchmarking import contenders as loops
from fashion_lit.benchmarking import throughput as contests
from fashion_lit.benchmarking import timing, whole_runs
from fashion_lit.benchmarking.baselines import (
    BATCH_TRANSFORMS,
    TRANSFORMS,
    PlainLoop,
    loader,
    write_torchvision_files,
)
from fashion_lit.benchmarking.contenders import (
    Effort,
    bare_steps,
    built_run,
    configure,
    lightning_steps,
    load,
    plain_seconds_until,
    plain_steps,
)
from fashion_lit.benchmarking.throughput import STEP_CALLBACKS, inference_rate
from fashion_lit.benchmarking.timing import Row, alternate, best, images_per_second
from fashion_lit.benchmarking.whole_runs import measure_accuracy, seconds_until, train_whole
from fashion_lit.commands.benchmark import main
from fashion_lit.config.settings import Config
from fashion_lit.data.batches import to_input
from fashion_lit.data.sources.source import LabelledImages
from fashion_lit.data.sources.synthetic import SyntheticGarments
from fashion_lit.data.types import Batch
from fashion_lit.errors import UserError
from fashion_lit.models.cnn import CNNClassifier


@pytest.fixture(scope="module")
def drawn() -> LabelledImages:
    return SyntheticGarments(num_train=64, num_test=10).load()[0]


def test_torchvision_reads_the_same_images(drawn: LabelledImages, tmp_path: Path) -> None:
    write_torchvision_files(drawn, tmp_path)
    dataset = FashionMNIST(str(tmp_path), train=True)
    assert torch.equal(dataset.data, drawn.images)
    assert torch.equal(dataset.targets, drawn.labels)


def test_both_sides_give_a_network_the_same_input(drawn: LabelledImages, tmp_path: Path) -> None:
    write_torchvision_files(drawn, tmp_path)
    for name, size, normalize in (
        ("report B, 28 px", 28, True),
        ("report A, 224 px", 224, False),
    ):
        dataset = FashionMNIST(str(tmp_path), train=True, transform=TRANSFORMS[name])
        theirs, _ = next(iter(DataLoader(dataset, batch_size=8)))
        ours = to_input(drawn.images[:8], image_size=size, normalize=normalize)
        ours = ours.expand_as(theirs)  # the network repeats the channel
        # PIL rounds to whole numbers of 255, across and then down.
        torch.testing.assert_close(ours, theirs, atol=1e-6 if size == 28 else 1.01 / 255, rtol=0)


@pytest.mark.parametrize("name", BATCH_TRANSFORMS)
def test_torchvision_mixes_whole_batches(name: str, drawn: LabelledImages, tmp_path: Path) -> None:
    write_torchvision_files(drawn, tmp_path)
    shapes = {labels.shape for _ in range(8) for _, labels in loader(tmp_path, name, 32, 0)}
    assert (32, 10) in shapes  # the strong one leaves a quarter of the batches alone


def test_sides_alternate_and_the_first_round_warms_up() -> None:
    calls: list[str] = []

    def side(name: str, rates: list[float]) -> float:
        calls.append(name)
        return rates.pop(0)

    first, second = [1.0, 2.0, 3.0], [10.0, 20.0, 30.0]
    found = alternate({"a": lambda: side("a", first), "b": lambda: side("b", second)}, 2)
    assert "".join(calls) == "baabba"
    assert found == {"a": [2.0, 3.0], "b": [20.0, 30.0]}
    assert best(found) == "b"


def test_a_rows_ratio_is_the_median_over_rounds() -> None:
    row = Row("p", "w", "steps/s", ours=[100.0, 50.0, 40.0], peer=[50.0, 50.0, 10.0], peer_name="x")
    assert row.ratio == 2.0
    assert row.extra_milliseconds == -10.0


def test_kernel_settings_of_one_side_do_not_affect_the_next() -> None:
    def flags() -> list[Any]:
        cudnn = torch.backends.cudnn
        return [
            *(cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32),
            torch.get_float32_matmul_precision(),
            torch.are_deterministic_algorithms_enabled(),
        ]

    def first() -> float:  # the process-wide settings of experiment=report_b, precision=tf32, …
        torch.backends.cudnn.benchmark = True
        torch.backends.cudnn.allow_tf32 = not torch.backends.cudnn.allow_tf32
        torch.set_float32_matmul_precision("high")
        torch.use_deterministic_algorithms(True, warn_only=True)
        return 1.0

    def second() -> float:
        assert flags() == before
        return 1.0

    before = flags()
    alternate({"first": first, "second": second}, 2)
    assert flags() == before


def test_images_are_counted_over_epochs_once_they_are_on_the_device(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 0.0  # seconds; each batch takes one, and the device's queued work another three
    waits: list[float] = []

    def batches() -> Iterator[Batch]:
        nonlocal now
        for _ in range(3):
            now += 1
            yield torch.zeros(5, 1), torch.zeros(5)

    def wait(device: torch.device) -> None:
        nonlocal now
        assert device.type == "meta"
        now += 3
        waits.append(now)

    monkeypatch.setattr(timing, "wait_for", wait)
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now)
    rate = images_per_second(batches, 4.0, torch.device("meta"))
    assert len(waits) == 2  # before the clock starts, and before it is read
    assert rate == 4 * 5 / (4 + 3)


def plain_loop(network: nn.Module, lr: float = 0.1) -> PlainLoop:
    optimizer = torch.optim.SGD(network.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1000)
    return PlainLoop(network, optimizer, schedule, label_smoothing=0.1)


def test_a_plain_loop_trains_the_requested_steps(drawn: LabelledImages, tmp_path: Path) -> None:
    write_torchvision_files(drawn, tmp_path)
    batches = loader(tmp_path, "report B, 28 px", 16, 0)
    loop = plain_loop(nn.Sequential(nn.Flatten(), nn.Linear(784, 10)))
    assert loop.steps_per_second(batches, num_steps=9) > 0
    assert loop.scheduler is not None
    assert loop.scheduler.last_epoch == 2 + 9  # two warm up


def test_a_plain_loop_trains_until_the_accuracy(drawn: LabelledImages, tmp_path: Path) -> None:
    write_torchvision_files(drawn, tmp_path)
    train = loader(tmp_path, "report B, 28 px", 16, 0, indices=range(48))
    others = loader(tmp_path, "report B, 28 px", 5, 0, indices=range(48, 64), shuffle=False)
    loop = plain_loop(nn.Sequential(nn.Flatten(), nn.Linear(784, 10)), lr=0.01)
    assert loop.scheduler is not None
    loop.network.eval()
    images = torch.cat([images for images, _ in others])
    with torch.no_grad():
        right = loop.network(images).argmax(1) == drawn.labels[48:]
    assert loop.accuracy(others) == right.float().mean().item()
    seconds, reached = loop.seconds_until(0.0, train, others, num_epochs=5)
    assert reached
    assert seconds > 0
    assert loop.scheduler.last_epoch == 3  # one epoch of 48 images
    assert not loop.seconds_until(1.01, train, others, num_epochs=2)[1]
    assert loop.scheduler.last_epoch == 3 + 2 * 3


def test_a_part_is_measured_and_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contests, "worker_counts", lambda: [0])
    output = tmp_path / "figures.json"
    arguments = ["data", "--data", "synthetic", "--rounds", "1", "--seconds", "0.01"]
    assert main([*arguments, "--output", str(output)]) == 0
    result = json.loads(output.read_text())
    assert [row["what"] for row in result["rows"]] == list(TRANSFORMS)
    assert all(row["ratio"] > 0 for row in result["rows"])
    assert result["machine"]["torch"] == str(torch.__version__)
    assert "data: report A, 224 px" in capsys.readouterr().out


def effort_of(root: Path, *overrides: str, num_seeds: int = 1) -> Effort:
    small = ("data.num_train=90", "data.num_test=30", "data.val_size=30", "data.batch_size=20")
    return Effort(
        "synthetic",
        num_rounds=1,
        seconds=0.01,
        num_steps=2,
        num_seeds=num_seeds,
        num_peer_seeds=1,
        overrides=(*small, *overrides),
        root=root,
    )


def test_every_side_of_the_loops_trains(drawn: LabelledImages, tmp_path: Path) -> None:
    write_torchvision_files(drawn, tmp_path)
    effort = effort_of(tmp_path)
    config = configure(effort, "model.network.widths=[4,4,4]")
    assert bare_steps(config, 2) > 0
    assert plain_steps(effort, config, 2, "report B, 28 px", 0) > 0
    for without in ((), *((callback,) for callback in STEP_CALLBACKS), (L.Callback,)):
        assert lightning_steps(effort, config, 2, without=without) > 0


@pytest.mark.parametrize("num_steps", [1, 2, 50])  # an epoch has three
def test_steps_are_counted_correctly(
    num_steps: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps_done = 0
    train_a_step = CNNClassifier.training_step

    def count(self: CNNClassifier, *arguments: Any) -> torch.Tensor:
        nonlocal steps_done
        steps_done += 1
        return train_a_step(self, *arguments)

    monkeypatch.setattr(CNNClassifier, "training_step", count)
    monkeypatch.setattr(loops.time, "perf_counter", lambda: float(steps_done))  # one a second
    effort = effort_of(tmp_path)
    config = configure(effort, "model.network.widths=[4,4,4]")
    assert lightning_steps(effort, config, num_steps) == 1.0
    assert steps_done >= num_steps


def test_inference_compiles_the_network_that_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[int] = []

    def watch(network: nn.Module, config: dict[str, Any]) -> None:
        network.register_forward_hook(lambda *_: passes.append(1))

    monkeypatch.setattr(contests, "compile_network", watch)
    config = configure(effort_of(tmp_path), "trainer.compile=true")
    assert config["model"]["ema_decay"]  # inference uses the averaged network
    inference_rate(effort_of(tmp_path), config, 3, as_trained=True)
    assert passes


def test_a_compiled_run_is_compared_with_a_compiled_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    modes: list[str | None] = []
    monkeypatch.setattr(nn.Module, "compile", lambda self, mode: modes.append(mode))
    effort = effort_of(tmp_path, "trainer.compile=reduce-overhead")
    config = configure(effort, "model.network.widths=[4,4,4]")
    assert lightning_steps(effort, config, 1) > 0
    assert bare_steps(config, 1) > 0
    assert modes == ["reduce-overhead"] * 2


@pytest.mark.parametrize("as_trained", [True, False])
def test_both_sides_of_inference_run(as_trained: bool, tmp_path: Path) -> None:
    effort = effort_of(tmp_path)
    assert inference_rate(effort, configure(effort), 3, as_trained=as_trained) > 0


def test_a_race_begins_with_the_weights_of_its_seed(tmp_path: Path) -> None:
    weights = []
    for seed in (1, 1, 2):
        config = configure(effort_of(tmp_path), "model.network.widths=[4,4,4]", f"seed={seed}")
        with built_run(effort_of(tmp_path), config) as (_, classifier, _):
            weights.append(torch.cat([p.flatten() for p in classifier.network.parameters()]))
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_a_race_ends_at_the_accuracy_or_with_the_run(tmp_path: Path) -> None:
    effort = effort_of(tmp_path, "trainer.max_epochs=2")
    widths = "model.network.widths=[4,4,4]"
    early, reached = seconds_until(effort, 0.0, widths)
    assert reached
    assert early > 0
    assert not seconds_until(effort, 1.01, widths)[1]


def test_a_race_has_a_figure_for_every_seed_and_notes_lower_bounds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    effort = effort_of(tmp_path, "trainer.max_epochs=1", "scheduler=constant", num_seeds=2)
    write_torchvision_files(load(configure(effort)).train, tmp_path)
    (row,) = measure_accuracy(effort)
    assert (len(row.ours), len(row.peer)) == (2, 1)
    assert row.ratio == pytest.approx(row.peer[0] / (sum(row.ours) / 2))
    assert row.note == "2 of ours did not reach it; 1 of peer did not reach it"
    assert capsys.readouterr().err.splitlines() == [
        f"seed 0, ours: {row.ours[0]:,.1f} s, not reached",
        f"seed 0, peer: {row.peer[0]:,.1f} s, not reached",
        f"seed 1, ours: {row.ours[1]:,.1f} s, not reached",
    ]


def test_a_race_refuses_a_scheduler_that_is_stepped_per_epoch(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="scheduler=plateau; do not override report B"):
        plain_seconds_until(effort_of(tmp_path), 0.5, "scheduler=plateau")


def test_a_whole_run_is_tested_and_a_failure_is_reported(tmp_path: Path) -> None:
    small = ("trainer.max_epochs=1", "model.network.widths=[4,4,4]")
    metrics = train_whole(effort_of(tmp_path, *small), "seed=3")
    assert metrics["seconds"] > 0
    assert 0 <= metrics["test/accuracy"] <= 1
    with pytest.raises(UserError, match=r"to train, but: fashion-lit train: Unknown setting"):
        train_whole(effort_of(tmp_path, "nothing=1"))


def test_both_sides_train_the_reports_recipes(
    drawn: LabelledImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def configure_small(effort: Effort, *overrides: str) -> Config:
        is_report_a = "experiment=report_a" in overrides
        return configure(effort, *overrides, *(["data.image_size=32"] if is_report_a else []))

    # Images of 224 pixels would take a minute, so both sides of report A use small ones.
    monkeypatch.setattr(contests, "configure", configure_small)
    small = Compose([Resize(32), Grayscale(3), ToTensor()])
    monkeypatch.setitem(TRANSFORMS, "report A, 224 px", small)
    write_torchvision_files(drawn, tmp_path)
    effort = effort_of(tmp_path, "data.batch_size=4", "data.eval_batch_size=10")
    rows = list(contests.measure_train(effort))
    assert [row.what for row in rows] == ["report B's CNN", "ResNet-18, 224 px"]
    for row in rows:
        assert (row.part, row.unit) == ("train", "images/s")
        assert len(row.ours) == len(row.peer) == effort.num_rounds
        assert min(*row.ours, *row.peer) > 0
        assert row.peer_name in [f"plain fp32, {n} workers" for n in contests.worker_counts()]


@pytest.mark.parametrize(("num_seeds", "note"), [
    (1, "test 90.00 %, n = 1"),
    (3, "test 92.00 ± 2.00 %, n = 3"),
])  # fmt: skip
def test_a_record_has_its_seconds_and_its_test_accuracy(
    num_seeds: int, note: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[tuple[str, ...]] = []

    def train(effort: Effort, *overrides: str) -> dict[str, float]:
        trained.append(overrides)
        seed = int(overrides[-1].removeprefix("seed="))
        return {"seconds": 10.0 + seed, "test/accuracy": 0.9 + 0.02 * seed}

    monkeypatch.setattr(whole_runs, "train_whole", train)
    own, *reports = whole_runs.measure_records(effort_of(tmp_path, num_seeds=num_seeds))
    assert (own.part, own.unit, own.note) == ("records", "s", note)
    assert own.ours == [10.0, 11.0, 12.0][:num_seeds]
    assert [row.note for row in reports] == ["test 90.00 %, n = 1"] * 2  # the peers' seeds
    assert [row.ours for row in reports] == [[10.0]] * 2
    for row in (own, *reports):
        assert (row.peer, row.peer_name) == ([], "")  # there is no peer
        assert math.isnan(row.ratio)
    assert trained[:num_seeds] == [(f"seed={seed}",) for seed in range(num_seeds)]
    assert [overrides[0] for overrides in trained[num_seeds:]] == [
        "experiment=report_b",
        "experiment=report_a",
    ]


def test_records_are_whole_runs_and_are_written_without_a_ratio(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (recipe, _), *_ = whole_runs.RECIPES.items()
    monkeypatch.setattr(whole_runs, "RECIPES", {recipe: ["model.network.widths=[4,4,4]"]})
    output = tmp_path / "figures.json"
    arguments = ["records", "--data", "synthetic", "--seeds", "1", "--output", str(output)]
    settings = ("data.num_train=90", "data.num_test=30", "data.val_size=30")
    settings += ("data.batch_size=20", "trainer.max_epochs=1")
    assert main([*arguments, *(word for text in settings for word in ("--set", text))]) == 0
    (row,) = json.loads(output.read_text())["rows"]
    (seconds,) = row["ours"]
    assert seconds > 0
    assert re.fullmatch(r"test \d+\.\d\d %, n = 1", row["note"])
    assert (row["peer"], row["ratio"]) == ([], None)
    (line,) = [x for x in capsys.readouterr().out.splitlines() if x.startswith("records: ")]
    assert re.match(rf"records: {recipe} +[\d.]+ +- +- +-  s, ", line)
    assert line.endswith(row["note"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["dat"],
            "inference, accuracy, records, but got dat; did you mean `data`?",
        ),
        (["--rounds", "0"], "Expected `--rounds` to be a whole number of at least 1, but got '0'."),
        (["--seconds", "nan"], "Expected `--seconds` to be a number above 0, but got 'nan'."),
        (["loop", "--set", "teacher=runs/a"], "`--set teacher=…` has no effect, because a"),
    ],
)
def test_bad_arguments_end_in_one_sentence(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1
