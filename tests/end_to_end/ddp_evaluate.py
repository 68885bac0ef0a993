"""Test a checkpoint on N gloo processes and print the metrics: ddp_evaluate.py CKPT N."""

import json
import sys

import lightning as L

from fashion_lit.data.datamodule import FashionMNISTDataModule
from fashion_lit.data.sources.synthetic import SyntheticGarments
from fashion_lit.models.cnn import CNNClassifier


def main(checkpoint: str, num_ranks: int) -> None:
    """Evaluate on all ranks; rank 0 prints the metrics over all images."""
    classifier = CNNClassifier.load_from_checkpoint(checkpoint, map_location="cpu")
    source = SyntheticGarments(num_train=300, num_test=101)  # divisible by neither 2 nor 3
    datamodule = FashionMNISTDataModule(source, batch_size=50, eval_batch_size=17, val_size=100)
    trainer = L.Trainer(
        accelerator="cpu",
        devices=num_ranks,
        strategy="ddp" if num_ranks > 1 else "auto",
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
    )
    trainer.test(classifier, datamodule, verbose=False)
    if trainer.is_global_zero:
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        metrics["num_images"] = float(classifier.test_metrics.compute()["confusion"].sum())
        print("METRICS " + json.dumps(metrics))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
