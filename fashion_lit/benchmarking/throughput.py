"""The throughput parts of `benchmark`: data, loop, training and inference, each against a peer.

    for row in measure_data(Effort("fashion_mnist", num_rounds=3, ...)):
        print(row.what, row.ratio)

Each `measure_…` yields its rows as they are measured. `whole_runs` has the parts that train fully.
"""

import time
from collections.abc import Iterator
from functools import partial

import lightning as L
import torch

from fashion_lit.benchmarking.baselines import TRANSFORMS, loader
from fashion_lit.benchmarking.contenders import (
    Effort,
    bare_steps,
    configure,
    device_of,
    lightning_steps,
    load,
    plain_steps,
)
from fashion_lit.benchmarking.timing import Row, alternate, best, images_per_second
from fashion_lit.config.settings import Config
from fashion_lit.models.build import build_classifier
from fashion_lit.runs.resume_checkpoints import ResumeCheckpoints
from fashion_lit.training.build import compile_network
from fashion_lit.training.callbacks import KeyedDropout
from fashion_lit.training.device import FP32, choose_precision, resolve_accelerator, set_tf32
from fashion_lit.training.lightning_internals import TRICKS
from fashion_lit.training.tensorboard import TensorBoardPages
from fashion_lit.training.terminal import TerminalTable

BATCHES_B = ("experiment=report_b",)
PIPELINES: dict[str, tuple[str, ...]] = {  # the settings of each of TRANSFORMS
    "report A, 224 px": ("experiment=report_a", "model.pretrained=false"),
    "report B, 28 px": BATCHES_B,
    "flip, crop, erasing, 28 px": (*BATCHES_B, "augment=flip_shift_erase"),
    "rotation, size, shear, 28 px": (
        *BATCHES_B,
        *("augment.rotate=10", "augment.scale=0.1", "augment.shear=10"),
    ),
    "brightness, contrast, 28 px": (*BATCHES_B, "augment.brightness=0.2", "augment.contrast=0.2"),
    "TrivialAugment, 28 px": (*BATCHES_B, "augment.trivial_augment=1"),
    "random erasing, 28 px": (*BATCHES_B, "augment.random_erase=0.5"),
    "mixup, 28 px": (*BATCHES_B, "augment.mixup=0.2"),
    "CutMix, 28 px": (*BATCHES_B, "augment.cutmix=1"),
    "strong, 28 px": (*BATCHES_B, "augment=strong"),
}
STEP_CALLBACKS = (KeyedDropout, ResumeCheckpoints, TensorBoardPages, TerminalTable)


def worker_counts() -> list[int]:
    """Return the numbers of worker processes of the peers' DataLoaders; the faster one counts.

    They are none, and as many as this process has threads, so that both sides use the same cores.
    """
    num_threads = torch.get_num_threads()
    return [0, num_threads] if num_threads > 1 else [0]


def measure_data(effort: Effort) -> Iterator[Row]:
    """Measure the images per second that reach the device, against torchvision's pipelines."""
    for name in TRANSFORMS:
        config = configure(effort, *PIPELINES[name])
        data, device = load(config, device_of(config)), device_of(config)
        rate = partial(images_per_second, seconds=effort.seconds, device=device)
        contenders = {"ours": partial(rate, data.train_dataloader)}
        for num_workers in worker_counts():
            make_loader = partial(loader, effort.root, name, data.batch_size, num_workers)
            contenders[f"torchvision, {num_workers} workers"] = partial(rate, make_loader)
        yield compare("data", name, "images/s", alternate(contenders, effort.num_rounds))


def compare(part: str, what: str, unit: str, rates: dict[str, list[float]]) -> Row:
    """Return a row with the rates of "ours" and of the fastest peer."""
    ours = rates.pop("ours")
    name = best(rates)
    return Row(part, what, unit, ours, rates[name], name)


def measure_loop(effort: Effort) -> Iterator[Row]:
    """Measure the steps per second of a complete run, against a bare loop on the same batches.

    For a tiny model, also measures the cost of each callback, and of Lightning without callbacks.
    """
    models = {  # overrides, and a factor for num_steps: report B's steps take ten times as long
        "the default model": ([], 4),
        "report B's CNN": (["experiment=report_b", "precision=auto"], 1),
    }
    yield from measure_callbacks(effort)
    for name, (overrides, factor) in models.items():
        config = configure(effort, *overrides)
        num_steps = factor * effort.num_steps
        contenders = {
            "ours": partial(lightning_steps, effort, config, num_steps),
            "bare loop": partial(bare_steps, config, num_steps),
        }
        yield compare("loop", name, "steps/s", alternate(contenders, effort.num_rounds))


def measure_callbacks(effort: Effort) -> Iterator[Row]:
    """Measure a tiny model's steps per second, with and without each callback and trick."""
    config = configure(effort, "model.network.widths=[4,4,4]", "data.batch_size=16")
    num_steps = 20 * effort.num_steps
    run = partial(lightning_steps, effort, config, num_steps)
    contenders = {"ours": run, "bare loop": partial(bare_steps, config, num_steps)}
    contenders |= {f"without {c.__name__}": partial(run, without=(c,)) for c in STEP_CALLBACKS}
    contenders |= {f"without {t}": partial(run, without_trick=t) for t in TRICKS}
    contenders["Lightning alone"] = partial(run, without=(L.Callback,))
    rates = alternate(contenders, effort.num_rounds)
    ours, bare = rates["ours"], rates["bare loop"]
    yield Row("loop", "a tiny model", "steps/s", ours, bare, "bare loop")
    alone = rates["Lightning alone"]
    yield Row("loop", "a tiny model, no callbacks", "steps/s", alone, bare, "bare loop")
    for part in (*(callback.__name__ for callback in STEP_CALLBACKS), *TRICKS):
        name = f"without {part}"
        yield Row("loop", "a tiny model", "steps/s", ours, rates[name], f"ours {name}")


def measure_train(effort: Effort) -> Iterator[Row]:
    """Measure images per second of both reports' recipes, against a plain float32 loop."""
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
        for num_workers in worker_counts():
            plain = partial(plain_steps, effort, config, num_steps, transform, num_workers)
            contenders[f"plain fp32, {num_workers} workers"] = plain
        rates = alternate(contenders, effort.num_rounds)
        batch_size = config["data"]["batch_size"]
        images = {key: [rate * batch_size for rate in values] for key, values in rates.items()}
        yield compare("train", name, "images/s", images)


def measure_inference(effort: Effort) -> Iterator[Row]:
    """Measure inference in images per second, against plain float32; images are on the device."""
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
    """Return the images per second of inference, waiting for the classes of each batch.

    Args:
        effort: gives the duration in seconds.
        config: a run's configuration.
        batch_size: images per batch.
        as_trained: use the run's precision and memory layout, as `inference.predict` does;
            otherwise float32 and PyTorch's default layout.
    """
    settings = config["trainer"]
    accelerator = resolve_accelerator(settings["accelerator"])
    precision = choose_precision(settings["precision"], accelerator)[0] if as_trained else FP32
    fabric = L.Fabric(accelerator=accelerator, devices=1, precision=precision)  # pyright: ignore[reportArgumentType]
    classifier = build_classifier(config).eval()
    if as_trained:
        set_tf32(settings["precision"], accelerator)
        compile_network(classifier.evaluated, config)
    else:
        classifier.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    images = torch.randn(batch_size, 1, 28, 28, device=fabric.device)
    model = fabric.setup_module(classifier)
    model(images).argmax(1).tolist()
    began, num_images = time.perf_counter(), 0
    while (passed := time.perf_counter() - began) < effort.seconds or not num_images:
        model(images).argmax(1).tolist()
        num_images += batch_size
    return num_images / passed
