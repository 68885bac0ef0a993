"""fashion-lit: train and sweep image classifiers.

    run = fashion_lit.train(["model=report_cnn", "trainer.max_epochs=2"])

The names in `__all__` are the public Python interface. Each is imported on first use, so
`import fashion_lit` alone loads neither torch nor Hydra.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_MODULES = {
    "CNNClassifier": "models.cnn",
    "FashionMNIST": "data.sources.fashion_mnist",
    "FashionMNISTDataModule": "data.datamodule",
    "IdxFiles": "data.sources.idx",
    "ImageFolder": "data.sources.folder",
    "ImageSource": "data.sources.source",
    "LabelledImages": "data.sources.source",
    "RunDirectory": "runs.directory",
    "Run": "training.loading",
    "SyntheticGarments": "data.sources.synthetic",
    "TransferClassifier": "models.transfer",
    "UserError": "errors",
    "leaderboard": "api.functions",
    "load_run": "training.loading",
    "predict": "training.inference",
    "sweep": "api.functions",
    "to_input": "data.batches",
    "train": "api.functions",
}
__all__ = sorted(_MODULES)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    """Import a public name on first access (PEP 562)."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    """List the public names, including those not imported yet."""
    return sorted({*globals(), *__all__})
