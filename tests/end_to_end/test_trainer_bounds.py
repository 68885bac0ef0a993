"""What the table of Trainer arguments lets through at its edges trains `debug=one_batch`."""

from collections.abc import Callable

import pytest

from fashion_lit.config.trainer import TrainerSettings
from fashion_lit.runs.directory import RunDirectory

# Each line is one run. Its 300 images are 200 to train on, in four batches of 50.
EDGES = [
    "limit_train_batches=1.0 limit_val_batches=1.0 limit_test_batches=1.0 num_nodes=1 "
    "gradient_clip_val=0 log_every_n_steps=0 num_sanity_val_steps=0 val_check_interval=1.0 "
    "check_val_every_n_epoch=1 overfit_batches=0 reload_dataloaders_every_n_epochs=0 max_steps=-1 "
    "devices=auto accelerator=auto accumulate_grad_batches=1 "
    "strategy=auto",
    "limit_train_batches=0.25 limit_val_batches=0.34 limit_test_batches=0.34 max_steps=1 "
    "val_check_interval=1 check_val_every_n_epoch=null num_sanity_val_steps=-1 compile=false "
    'devices="1" gradient_clip_algorithm=norm gradient_clip_val=1e30 deterministic=warn',
    "limit_train_batches=1000000 limit_val_batches=1000000 accumulate_grad_batches=1000 "
    "log_every_n_steps=1000000 num_sanity_val_steps=1000 max_steps=1000000 profiler=simple "
    "gradient_clip_algorithm=value gradient_clip_val=1e-30 reload_dataloaders_every_n_epochs=99",
    "overfit_batches=1 limit_train_batches=null max_time=00:00:00:01 deterministic=true "
    "benchmark=true inference_mode=false detect_anomaly=true enable_progress_bar=true",
    "overfit_batches=0.34 limit_train_batches=null max_time={seconds:1} sync_batchnorm=true "
    "enable_model_summary=true profiler=advanced",
    "overfit_batches=1.0 limit_train_batches=null limit_val_batches=null limit_test_batches=null "
    "val_check_interval={minutes:1} log_every_n_steps=null num_sanity_val_steps=null max_epochs=2",
    "precision=auto max_time=99:00:00:00 min_steps=1000000 min_epochs=1 profiler=pytorch",
    "precision=64-true val_check_interval=0.25 limit_train_batches=4",
    "precision=bf16-true val_check_interval=00:00:00:01",
    "precision=16-true max_epochs=1",
    "precision=16-mixed",
    "precision=bf16",
    "precision=tf32",
    'precision="32"',
]


def test_every_argument_is_tried() -> None:
    tried = {text.partition("=")[0] for line in EDGES for text in line.split()}
    assert tried == TrainerSettings.model_fields.keys()


@pytest.mark.parametrize("line", EDGES, ids=[line[:40] for line in EDGES])
def test_the_edges_of_the_table_can_be_trained(
    line: str, train: Callable[..., RunDirectory]
) -> None:
    settings = [f"trainer.{text}" for text in line.split()]
    run = train("debug=one_batch", "trainer.max_epochs=1", *settings)
    assert run.status["state"] == "finished"
    assert 0 <= run.metrics["test/accuracy"] <= 1
