"""What `benchmark` measures in rates: data, loop, training and inference, each against a peer.

    for row in measure_data(Effort("fashion_mnist", num_rounds=3, ...)):
        print(row.what, row.ratio)

Each `measure_…` yields its rows as they come; `whole_runs` has the parts that train to an end.
"""

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from functools import partial
from io import StringIO
from pathlib import Path

import lightning as L
import torch
from torch import nn
from torch.utils.data import DataLoader

from fashion_lit.build import build_classifier, build_datamodule, build_trainer
from fashion_lit.callbacks import KeyedDropout, TrainingSpeed
from fashion_lit.classifier import ImageClassifier
from fashion_lit.config import LOCATION_KEYS, compose_jobs, prepare_overrides
from fashion_lit.datamodule import Batch, FashionMNISTDataModule, TrainBatches
from fashion_lit.device import MIXED_BF16, MIXED_FP16, choose_precision, resolve_accelerator
from fashion_lit.optimization import OPTIMIZERS, SCHEDULERS
from fashion_lit.peers import TRANSFORMS, loader, train_plainly
from fashion_lit.restart_points import RestartPoints
from fashion_lit.resuming import Restart
from fashion_lit.run_directory import RunDirectory
from fashion_lit.schema import Config, check
from fashion_lit.stopping import StopSignals
from fashion_lit.tensorboard_pages import TensorBoardPages
from fashion_lit.terminal import TerminalTable
from fashion_lit.timing import Row, alternate, best, images_per_second

NUM_WORKERS = (0, 2)  # of the peers' loaders; the faster one counts
STEP_CALLBACKS = (KeyedDropout, RestartPoints, TensorBoardPages, TerminalTable)
MANY_EPOCHS = 100  # for schedules that want to know their end


@dataclass(frozen=True)
class Effort:
    """How long to measure.

    Args:
        data: "fashion_mnist" or "synthetic".
        num_rounds: that count.
        seconds: of each side of a round, where images are counted.
        num_steps: of each side of a round, where steps are.
        num_seeds: whole runs of this project's recipe.
        num_peer_seeds: whole runs of the report's.
        overrides: of all runs that train, as `fashion-lit train` takes them.
        root: a folder for temporary files.
    """

    data: str
    num_rounds: int
    seconds: float
    num_steps: int
    num_seeds: int
    num_peer_seeds: int
    overrides: tuple[str, ...]
    root: Path


def configure(effort: Effort, *overrides: str) -> Config:
    """Compose a run's configuration."""
    given = [f"data={effort.data}", "test=false", "trainer.enable_progress_bar=false"]
    given += [*overrides, *effort.overrides]
    (config,) = compose_jobs(prepare_overrides(given), multirun=False)
    check(config)
    return {key: value for key, value in config.items() if key not in LOCATION_KEYS}


def load(effort: Effort, *overrides: str) -> FashionMNISTDataModule:
    """Return the data module of a configuration, with its images."""
    config = configure(effort, *overrides)
    datamodule = build_datamodule(config, build_classifier(config))
    datamodule.prepare_data()
    datamodule.setup()
    return datamodule


def measure_data(effort: Effort) -> Iterator[Row]:
    """Images per second of the whole-batch pipeline, against torchvision's per-sample ones."""
    ours = {
        "report A, 224 px": ["experiment=report_a", "model.pretrained=false"],
        "report B, 28 px": ["experiment=report_b"],
        "flip, crop, erasing, 28 px": ["experiment=report_b", "augment=flip_shift_erase"],
    }
    for name in TRANSFORMS:
        data = load(effort, *ours[name])
        contenders = {"ours": partial(images_per_second, data.train_dataloader, effort.seconds)}
        for num_workers in NUM_WORKERS:
            make_loader = partial(loader, effort.root, name, data.batch_size, num_workers)
            torchvision = partial(images_per_second, make_loader, effort.seconds)
            contenders[f"torchvision, {num_workers} workers"] = torchvision
        yield compare("data", name, "images/s", alternate(contenders, effort.num_rounds))


def compare(part: str, what: str, unit: str, rates: dict[str, list[float]]) -> Row:
    """Return our rates beside the fastest peer's."""
    ours = rates.pop("ours")
    name = best(rates)
    return Row(part, what, unit, ours, rates[name], name)


def measure_loop(effort: Effort) -> Iterator[Row]:
    """Steps per second of a run as users run it, against a bare loop of the same batches.

    Where a step is shortest, also what each callback costs, and Lightning's Trainer with none.
    """
    models = {
        "the default model": [],
        "report B's CNN": ["experiment=report_b", "precision=auto"],
    }
    yield from measure_callbacks(effort)
    for name, overrides in models.items():
        config = configure(effort, *overrides)
        contenders = {
            "ours": partial(lightning_steps, effort, config, effort.num_steps),
            "bare loop": partial(bare_steps, config, effort.num_steps),
        }
        yield compare("loop", name, "steps/s", alternate(contenders, effort.num_rounds))


def measure_callbacks(effort: Effort) -> Iterator[Row]:
    """Steps per second of a tiny model, with and without each callback that acts in a step."""
    config = configure(effort, "model.network.widths=[4,4,4]", "data.batch_size=16")
    num_steps = 20 * effort.num_steps
    run = partial(lightning_steps, effort, config, num_steps)
    contenders = {"ours": run, "bare loop": partial(bare_steps, config, num_steps)}
    contenders |= {f"without {c.__name__}": partial(run, without=(c,)) for c in STEP_CALLBACKS}
    contenders["Lightning alone"] = partial(run, without=(L.Callback,))
    rates = alternate(contenders, effort.num_rounds)
    ours, bare = rates["ours"], rates["bare loop"]
    yield Row("loop", "a tiny model", "steps/s", ours, bare, "bare loop")
    alone = rates["Lightning alone"]
    yield Row("loop", "a tiny model, no callbacks", "steps/s", alone, bare, "bare loop")
    for callback in STEP_CALLBACKS:
        name = f"without {callback.__name__}"
        yield Row("loop", "a tiny model", "steps/s", ours, rates[name], f"ours {name}")


def lightning_steps(
    effort: Effort, config: Config, num_steps: int, *, without: tuple[type[L.Callback], ...] = ()
) -> float:
    """Return the steps per second of a run's second epoch: logs, metrics, checkpoints and all.

    Callbacks of the kinds `without` are left out, but for the one that takes the time.
    """
    trainer_settings = {"max_epochs": 2, "limit_train_batches": num_steps, "limit_val_batches": 1}
    config = config | {"trainer": config["trainer"] | trainer_settings}
    with built_run(effort, config) as (trainer, classifier, datamodule):
        (speed,) = (c for c in trainer.callbacks if isinstance(c, TrainingSpeed))  # type: ignore[attr-defined]
        kept = [c for c in trainer.callbacks if c is speed or not isinstance(c, without)]  # type: ignore[attr-defined]
        trainer.callbacks = kept  # type: ignore[attr-defined]
        trainer.fit(classifier, datamodule)
    return num_steps / speed.seconds


@contextmanager
def built_run(
    effort: Effort, config: Config
) -> Iterator[tuple[L.Trainer, ImageClassifier, FashionMNISTDataModule]]:
    """Build all that a run of a configuration needs, in a directory of its own; it tells nobody."""
    with tempfile.TemporaryDirectory(dir=effort.root) as folder, redirect_stdout(StringIO()):
        run = RunDirectory(Path(folder) / "run")
        run.path.mkdir()
        run.create(config)
        classifier = build_classifier(config)
        datamodule = build_datamodule(config, classifier)
        trainer, _ = build_trainer(config, run, Restart(), StopSignals())
        yield trainer, classifier, datamodule
        trainer.logger.experiment.close()  # type: ignore[union-attr]


def bare_steps(config: Config, num_steps: int) -> float:
    """Return the steps per second of a loop that does nothing but train, on the same batches."""
    classifier = build_classifier(config)
    datamodule = build_datamodule(config, classifier)
    datamodule.prepare_data()
    datamodule.setup()
    device = torch.device(resolve_accelerator(config["trainer"]["accelerator"]))
    datamodule.tensor_device = device
    datamodule.train = type(datamodule.train)(*(part.to(device) for part in datamodule.train))
    network = classifier.network.to(device)
    precision, _ = choose_precision(config["trainer"]["precision"], device.type)
    autocast = {MIXED_BF16: torch.bfloat16, MIXED_FP16: torch.float16}.get(precision)
    return recipe_steps(config, network, datamodule.train_dataloader(), num_steps, autocast)


def recipe_steps(
    config: Config,
    network: nn.Module,
    batches: TrainBatches | DataLoader[Batch],
    num_steps: int,
    autocast: torch.dtype | None,
) -> float:
    """Return the steps per second of a plain loop with a configuration's optimizer and schedule."""
    settings = dict(config["optimizer"])
    optimizer = OPTIMIZERS[settings.pop("name")](network, **settings)
    settings = dict(config["scheduler"])
    build = SCHEDULERS[settings.pop("name")]
    schedule = build(optimizer, MANY_EPOCHS * len(batches), MANY_EPOCHS, **settings)
    return train_plainly(
        network,
        lambda: batches,
        optimizer,
        schedule["scheduler"] if schedule else None,
        num_steps=num_steps,
        label_smoothing=config["model"]["label_smoothing"],
        autocast=autocast,
    )


def measure_train(effort: Effort) -> Iterator[Row]:
    """Images per second of the reports' recipes, against a plain float32 loop over torchvision."""
    recipes = {
        "report B's CNN": (["experiment=report_b"], "report B, 28 px"),
        "ResNet-18, 224 px": (
            ["experiment=report_a", "model.pretrained=false", "data.eval_batch_size=64"],
            "report A, 224 px",
        ),
    }
    for name, (overrides, transform) in recipes.items():
        config = configure(effort, *overrides, "precision=auto")
        num_steps = max(1, effort.num_steps // (4 if "224" in name else 1))
        contenders = {"ours": partial(lightning_steps, effort, config, num_steps)}
        for num_workers in NUM_WORKERS:
            plainly = partial(plain_steps, effort, config, num_steps, transform, num_workers)
            contenders[f"plain fp32, {num_workers} workers"] = plainly
        rates = alternate(contenders, effort.num_rounds)
        batch_size = config["data"]["batch_size"]
        images = {key: [rate * batch_size for rate in values] for key, values in rates.items()}
        yield compare("train", name, "images/s", images)


def plain_steps(
    effort: Effort, config: Config, num_steps: int, transform: str, num_workers: int
) -> float:
    """Return the steps per second of the recipe in float32, over torchvision's images."""
    device = torch.device(resolve_accelerator(config["trainer"]["accelerator"]))
    network = build_classifier(config).network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    batches = loader(effort.root, transform, config["data"]["batch_size"], num_workers)
    return recipe_steps(config, network.to(device), batches, num_steps, autocast=None)


def measure_inference(effort: Effort) -> Iterator[Row]:
    """Images per second of one batch after another, against plain float32, images at hand."""
    for name, overrides in (("the default model", []), ("report B's CNN", ["experiment=report_b"])):
        config = configure(effort, *overrides, "precision=auto")
        for batch_size in (1, 1000):
            contenders = {
                "ours": partial(inference_rate, effort, config, batch_size, as_trained=True),
                "plain fp32": partial(inference_rate, effort, config, batch_size, as_trained=False),
            }
            what = f"{name}, batch {batch_size:,}"
            yield compare("inference", what, "images/s", alternate(contenders, effort.num_rounds))


@torch.inference_mode()
def inference_rate(effort: Effort, config: Config, batch_size: int, *, as_trained: bool) -> float:
    """Return images per second through a configuration's network, waiting for each batch's classes.

    Args:
        effort: how long.
        config: the run's.
        batch_size: images a batch.
        as_trained: in the run's precision and memory layout, as `evaluation.predict` does it;
            otherwise in float32 and PyTorch's own layout.
    """
    settings = config["trainer"]
    accelerator = resolve_accelerator(settings["accelerator"])
    precision = choose_precision(settings["precision"], accelerator)[0] if as_trained else "32-true"
    fabric = L.Fabric(accelerator=accelerator, devices=1, precision=precision)  # pyright: ignore[reportArgumentType]
    classifier = build_classifier(config).eval()
    if not as_trained:
        classifier.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    images = torch.randn(batch_size, classifier.num_channels, 28, 28, device=fabric.device)
    model = fabric.setup_module(classifier)
    model(images).argmax(1).tolist()
    began, num_images = time.perf_counter(), 0
    while (passed := time.perf_counter() - began) < effort.seconds or not num_images:
        model(images).argmax(1).tolist()
        num_images += batch_size
    return num_images / passed
