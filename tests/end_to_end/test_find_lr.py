"""`fashion-lit find-lr`: its training against a plain loop, what it leaves, and what it refuses."""

import shlex
import signal
import subprocess
import sys
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_pre_hook

from fashion_lit.commands.find_lr import main, train_at_rates
from fashion_lit.commands.train import main as train_main
from fashion_lit.config.compose import compose_jobs
from fashion_lit.config.overrides import prepare_overrides
from fashion_lit.config.schema import check
from fashion_lit.data.batches import TrainBatches
from fashion_lit.models import build
from fashion_lit.models.classifier import ImageClassifier
from fashion_lit.runs.directory import RunDirectory
from fashion_lit.runs.signals import StopSignals
from fashion_lit.training.build import build_datamodule

NUM_STEPS = 8
RATES = [0.001 * 2.0**step for step in range(NUM_STEPS)]
FACTORS = (1.0, 16.0)  # of the weights, and of norms and biases: conf/optimizer/sgd.yaml


def settings(*overrides: str) -> dict[str, Any]:
    (config,) = compose_jobs(prepare_overrides(overrides), multirun=False)
    return check(config)


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[ImageClassifier]:
    """The classifiers that a command builds."""
    found: list[ImageClassifier] = []
    original = build.build_classifier

    def build_classifier(config: Any, *images: Any) -> ImageClassifier:
        found.append(original(config))
        return found[-1]

    monkeypatch.setattr(build, "build_classifier", build_classifier)
    return found


def plain_loop(config: dict[str, Any], accumulate: int) -> tuple[ImageClassifier, list[float]]:
    """Train with RATES by torch alone; return the classifier and the mean loss of each step."""
    torch.manual_seed(config["seed"])
    classifier = build.build_classifier(config).train()
    parameters = list(classifier.network.parameters())
    weights = [p for p in parameters if p.ndim >= 2]
    others = [p for p in parameters if p.ndim < 2]
    arguments: Any = config["optimizer"]
    decay = arguments["weight_decay"]
    groups = [
        {"params": weights, "weight_decay": decay},
        {"params": others, "weight_decay": decay / 16},
    ]
    optimizer = torch.optim.SGD(groups, lr=1.0, momentum=arguments["momentum"], nesterov=True)
    datamodule = build_datamodule(config)
    datamodule.prepare_data()
    datamodule.setup("fit")
    batches = (batch for epoch in range(9) for batch in TrainBatches(datamodule).draw(epoch))
    losses = []
    for rate in RATES:
        for group, factor in zip(optimizer.param_groups, FACTORS, strict=True):
            group["lr"] = rate * factor
        optimizer.zero_grad()
        parts = []
        for images, labels in islice(batches, accumulate):
            loss = classifier.loss(classifier(images), labels)
            (loss / accumulate).backward()
            parts.append(float(loss.detach()))
        losses.append(sum(parts) / accumulate)
        optimizer.step()
    return classifier, losses


@pytest.mark.parametrize("accumulate", [1, 2])
def test_rates_losses_and_weights_are_those_of_a_plain_loop(
    accumulate: int, small: list[str], built: list[ImageClassifier]
) -> None:
    config = settings(*small, f"trainer.accumulate_grad_batches={accumulate}")
    used = []

    def record(optimizer: Any, *_: Any) -> None:
        used.append([group["lr"] for group in optimizer.param_groups])

    hook = register_optimizer_step_pre_hook(record)
    try:
        curve, diverged = train_at_rates(config, RATES, StopSignals())
    finally:
        hook.remove()
    assert used == [[rate, 16 * rate] for rate in RATES]  # over two epochs and more
    assert not diverged
    expected, losses = plain_loop(config, accumulate)
    assert curve.rates == RATES
    assert curve.losses == pytest.approx(losses, rel=1e-4)
    ours, theirs = (c.network.state_dict() for c in (built[0], expected))
    for name, tensor in theirs.items():
        assert torch.allclose(ours[name].float(), tensor.float(), rtol=1e-3, atol=1e-5), name


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current directory."""
    folder = tmp_path / "empty"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def test_it_leaves_only_the_picture_and_its_command_trains(
    small: list[str], empty: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main([*small, "scheduler=cosine", "scheduler.warmup_epochs=0.5", "--steps=80"]) == 0
    assert [path.name for path in empty.rglob("*")] == ["find_lr.png"]
    assert (empty / "find_lr.png").read_bytes().startswith(b"\x89PNG")
    text = capfd.readouterr().out
    assert "The loss diverged at" in text
    (line,) = [line for line in text.splitlines() if "train with it:" in line]
    program, command, *words = shlex.split(line.partition(":")[2])
    assert (program, command, words[:-1]) == (
        "fashion-lit",
        "train",
        [*small, "scheduler=cosine", "scheduler.warmup_epochs=0.5"],
    )
    suggestion = float(words[-1].removeprefix("optimizer.lr="))
    assert f"Suggested learning rate: {suggestion:.2g}," in text
    run = RunDirectory(tmp_path / "run")
    assert train_main([*words, f"run_dir={run.path.as_posix()}", "test=false"]) == 0
    assert run.config["optimizer"]["lr"] == suggestion


def test_it_starts_from_the_weights_of_a_run(
    finished_run: RunDirectory, empty: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = sorted(finished_run.path.rglob("*"))
    source = f"init_from={finished_run.path.as_posix()}"
    assert main([source, "--steps", "40", "--output", "a/b.png"]) == 0
    text = capfd.readouterr().out
    assert "starts from the averaged weights after" in text
    assert f"fashion-lit train {source} optimizer.lr=" in text
    assert sorted(finished_run.path.rglob("*")) == before
    assert [path.name for path in empty.rglob("*.*")] == ["b.png"]


def test_several_teachers_may_be_typed_with_a_comma(
    finished_run: RunDirectory, small: list[str], empty: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    teacher = finished_run.path.as_posix()
    assert main([*small, f"teacher={teacher},{teacher}"]) == 2  # read as two, which are one
    assert "Expected each teacher once" in capfd.readouterr().err
    assert not list(empty.iterdir())


def test_it_learns_from_the_teachers_of_the_run(
    finished_run: RunDirectory, small: list[str]
) -> None:
    teacher = f"teacher={finished_run.path.as_posix()}"
    labels_loss, loss, half_loss = (
        train_at_rates(settings(*small, *more), RATES, StopSignals())[0].losses[0]
        for more in ([], [teacher], [teacher, "distillation.weight=0.5"])
    )
    teachers_loss = (loss - 0.1 * labels_loss) / 0.9
    assert teachers_loss != pytest.approx(labels_loss, rel=1e-3)
    assert half_loss == pytest.approx(0.5 * labels_loss + 0.5 * teachers_loss, rel=1e-4)


def test_a_loss_that_is_not_finite_ends_the_test(
    small: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    original, count = ImageClassifier.loss, 0

    def loss(self: ImageClassifier, logits: Tensor, labels: Tensor) -> Tensor:
        nonlocal count
        count += 1
        return original(self, logits, labels) * (float("nan") if count == 6 else 1.0)

    monkeypatch.setattr(ImageClassifier, "loss", loss)
    curve, diverged = train_at_rates(settings(*small), RATES, StopSignals())
    assert diverged
    assert len(curve.losses) == len(curve.rates) == 5


def test_there_may_be_no_suggestion(
    small: list[str], empty: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main([*small, "--steps=20", "--min-lr=100", "--max-lr=1e5"]) == 1
    assert "too few for a curve; lower --min-lr." in capfd.readouterr().out
    assert not list(empty.iterdir())
    assert main([*small, "--steps=20", "--max-lr=1e-4"]) == 1
    text = capfd.readouterr().out
    assert "No suggestion: the loss never falls by 5 %; set a larger --max-lr." in text
    assert "train with it" not in text


def test_ctrl_c_leaves_nothing(
    small: list[str],
    empty: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    original = ImageClassifier.loss

    def loss(self: ImageClassifier, logits: Tensor, labels: Tensor) -> Tensor:
        signal.raise_signal(signal.SIGINT)
        return original(self, logits, labels)

    monkeypatch.setattr(ImageClassifier, "loss", loss)
    assert main(small) == 130
    out, err = capfd.readouterr()
    assert out.endswith("\nStopped by SIGINT.\n")
    assert "Traceback" not in out + err
    assert not list(empty.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["optimizer.lr=0.1"], "`optimizer.lr` has no effect, because find-lr finds it"),
        (["+optimizer.lr=0.1"], "`optimizer.lr` has no effect"),
        (["run_dir=x"], "`run_dir` has no effect, because find-lr leaves no run"),
        (["ckpt_path=x"], "`ckpt_path` has no effect"),
        (["sweep_name=x"], "`sweep_name` has no effect"),
        (["launcher.num_jobs=2"], "`launcher.num_jobs` has no effect"),
        (["-m", "seed=1"], "tests one configuration; leave out -m"),
        (["seed=1,2"], "`seed=1,2` holds several values"),
        (["sweep=seeds"], "`sweep=seeds` holds several values"),
        (["optimizer.momentum=0.8"], "`optimizer.momentum` has no effect, because scheduler=one"),
        (["trainer.devices=2", "trainer.accelerator=cpu", "data.batch_size=64"], "batch_size=128"),
        (["model.widht=3"], "Unknown setting `model.widht`"),
        (["--steps", "3"], "`--steps` to be at least 20, but got 3."),
        (["--min-lr", "0"], "`--min-lr` to be a number above 0"),
        (["--min-lr", "1e-300"], "Expected `--min-lr` to be from 1e-12 to 1e+06, but got 1e-300."),
        (["--min-lr", "1", "--max-lr", "1"], "`--min-lr` to be below --max-lr=1, but got 1."),
        (["--stepps", "30"], "did you mean `--steps`?"),
        (["--output", "x.txt"], "`--output` to end in .png"),
        (["--output", "x.txt/y.png"], "x.txt/y.png cannot be written"),
        (["trainer.accelerator=gpu"], "Expected a"),
        (["data.mirrors=[]", "data.root=."], "no mirror provides it"),
    ],
)
@pytest.mark.usefixtures("no_gpu")
def test_refusals_are_one_message_and_leave_nothing(
    arguments: list[str], message: str, empty: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (empty / "x.txt").touch()
    assert main(arguments) == 2
    error = capfd.readouterr().err
    assert error.startswith("fashion-lit find-lr: ")
    assert message in error.replace("\\", "/")
    assert [path.name for path in empty.iterdir()] == ["x.txt"]


def test_a_misspelt_setting_is_refused_before_torch_is_imported() -> None:
    code = (
        "import sys; from fashion_lit.commands.find_lr import main; "
        "assert main(['optimizer.lrr=1']) == 2; assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "did you mean `optimizer.lr`?" in done.stderr
