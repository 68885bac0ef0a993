"""Silence what is known to be harmless, one message at a time; everything else stays audible."""

import logging
import warnings

# What Lightning tells at INFO level, and why nobody needs it here.
MESSAGES = (
    "GPU available:",  # the run's own first line names the device
    "TPU available:",
    "💡 Tip:",  # advertisements
    "Using bfloat16 Automatic Mixed Precision",  # the run's own first line names the precision
    "Using 16bit Automatic Mixed Precision",
    "Using 16-bit Automatic Mixed Precision",  # Fabric's spelling
    "You are using a CUDA device",  # that has Tensor Cores, which bf16, fp16 and precision=tf32 use
    "LOCAL_RANK:",
    "Loading `train_dataloader` to estimate number of stepping batches.",
    "`Trainer.fit` stopped: `max_epochs=",  # the table shows it
    "`Trainer(limit_",  # repeats what the user has just typed
    "Restoring states from the checkpoint path",
    "Restored all states from the checkpoint",
    "Loaded model weights from the checkpoint",
)
# Warnings (regular expressions on their beginning).
WARNINGS = (
    # log_every_n_steps spaces points of two curves; short epochs simply have none between.
    r"The number of training batches \(\d+\) is smaller than the logging interval",
    # Values are summed over ranks by the metrics before they are logged.
    r"It is recommended to use `self\.log\('.*', \.\.\., sync_dist=True\)`",
    # fp16's scaler may skip the first step while it looks for its scale.
    r"Detected call of `lr_scheduler\.step\(\)` before `optimizer\.step\(\)`",
    # Lightning's own affair with torch's pytree.
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",
    # Said of debug=overfit, whose batches repeat as they should.
    r"You requested to overfit but enabled train dataloader shuffling",
    # Said of model.freeze_backbone, whose batch statistics stay as they are.
    r"Found \d+ module\(s\) in eval mode at the start of training",
    # A run that goes on finds its own checkpoints, and goes on where it was, in mid-epoch too.
    r"Checkpoint directory .* exists and is not empty",
    r"You're resuming from a checkpoint that ended before the epoch ended",
    # Said on every login node; launcher=slurm uses srun.
    r"The `srun` command is available on your system but is not used",
    # Every rank evaluates its own share of every image, exactly once.
    r"Using `DistributedSampler` with the dataloaders",
)


def silence_known_messages() -> None:
    """Install the filters; calling it twice changes nothing."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        for handler in logging.getLogger(name).handlers:
            handler.addFilter(_is_news)
    for beginning in WARNINGS:
        warnings.filterwarnings("ignore", message=beginning)


def _is_news(record: logging.LogRecord) -> bool:
    return not record.getMessage().lstrip().startswith(MESSAGES)
