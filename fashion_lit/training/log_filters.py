"""Filter out known harmless messages and warnings, and no others."""

import logging
import warnings

# Beginnings of Lightning's INFO messages, and why they are redundant.
MESSAGES = (
    "GPU available:",  # the run's own first line names the device
    "TPU available:",
    "💡 Tip:",  # advertisements
    "Using bfloat16 Automatic Mixed Precision",  # the run's own first line names the precision
    "Using 16bit Automatic Mixed Precision",
    "Using 16-bit Automatic Mixed Precision",  # Fabric's spelling
    "You are using a CUDA device",  # with Tensor Cores, which bf16, fp16 and precision=tf32 use
    "LOCAL_RANK:",
    "Loading `train_dataloader` to estimate number of stepping batches.",
    "`Trainer.fit` stopped: `max_epochs=",  # the table shows it
    "`Trainer(limit_",  # repeats the user's override
    "Restoring states from the checkpoint path",
    "Restored all states from the checkpoint",
    "Loaded model weights from the checkpoint",
)
# Warnings: regular expressions that match their beginning.
WARNINGS = (
    # log_every_n_steps is the spacing of two curves; a shorter epoch may have no point.
    r"The number of training batches \(\d+\) is smaller than the logging interval",
    # The metrics sum over ranks before they are logged.
    r"It is recommended to use `self\.log\('.*', \.\.\., sync_dist=True\)`",
    # fp16's GradScaler may skip the first step while it searches for its scale.
    r"Detected call of `lr_scheduler\.step\(\)` before `optimizer\.step\(\)`",
    # Lightning's own use of torch's pytree.
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",
    # Raised for debug=overfit, which repeats its batches on purpose.
    r"You requested to overfit but enabled train dataloader shuffling",
    # Raised for model.freeze_backbone, which freezes the batch statistics on purpose.
    r"Found \d+ module\(s\) in eval mode at the start of training",
    # A resumed run finds its own checkpoints, and resumes exactly even in mid-epoch.
    r"Checkpoint directory .* exists and is not empty",
    r"You're resuming from a checkpoint that ended before the epoch ended",
    # Raised on every login node; launcher=slurm uses srun.
    r"The `srun` command is available on your system but is not used",
    # The ranks share the evaluation images, each exactly once.
    r"Using `DistributedSampler` with the dataloaders",
)


def silence_known_messages() -> None:
    """Install the filters; further calls have no effect."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        for handler in logging.getLogger(name).handlers:
            handler.addFilter(_is_not_silenced)
    for beginning in WARNINGS:
        warnings.filterwarnings("ignore", message=beginning)


def _is_not_silenced(record: logging.LogRecord) -> bool:
    return not record.getMessage().lstrip().startswith(MESSAGES)
