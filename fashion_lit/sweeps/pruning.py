"""How a run of a search tells it of its epochs, and is told to give up.

    pruning = pruning_from_environment()  # a callback, if a search started this process

`search` starts runs as processes of their own; an environment variable names their trial.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import lightning as L
from filelock import FileLock
from typing_extensions import override

from fashion_lit.training.run import Pruned

if TYPE_CHECKING:
    import optuna

TRIAL_VARIABLE = "FASHION_LIT_TRIAL"
STUDY_FILE = "study.db"  # in the sweep's directory, for `optuna-dashboard sqlite:///…/study.db`
STUDY = "search"
PRUNERS = ("median", "none")
METRIC = "val/accuracy"


class Pruning(L.Callback):
    """Reports val/accuracy at every epoch's end, and ends a run that the study's pruner gives up.

    Args:
        trial: of the study.
    """

    def __init__(self, trial: "optuna.Trial") -> None:
        self.trial = trial

    @override
    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        hopeless = False
        epochs_done = trainer.current_epoch + 1
        if trainer.is_global_zero and METRIC in trainer.callback_metrics:
            reported = self.trial.study.trials[self.trial.number]
            if epochs_done not in reported.intermediate_values:  # an epoch done again is the same
                self.trial.report(float(trainer.callback_metrics[METRIC]), epochs_done)
            hopeless = self.trial.should_prune()
        if trainer.strategy.reduce_boolean_decision(hopeless, all=False):
            raise Pruned(f"after epoch {epochs_done} of {trainer.max_epochs}")


def pruning_from_environment() -> list[Pruning]:
    """Return the callback of the trial that this process runs; none unless it may be pruned."""
    told = os.environ.get(TRIAL_VARIABLE)
    if not told:
        return []
    import optuna

    trial = json.loads(told)
    study = load_study(Path(trial["study"]), trial["pruner"])
    return [Pruning(optuna.Trial(study, trial["id"]))]


def trial_environment(sweep_dir: Path, trial_id: int, pruner: str) -> Mapping[str, str]:
    """Return the environment variables that let a process find its trial."""
    if pruner == "none":
        return {}
    study = (sweep_dir / STUDY_FILE).absolute().as_posix()
    return {TRIAL_VARIABLE: json.dumps({"study": study, "id": trial_id, "pruner": pruner})}


def load_study(path: Path, pruner: str) -> "optuna.Study":
    """Open a study, which is created if there is none.

    Args:
        path: its SQLite file.
        pruner: "median", or "none".
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    pruners = {"median": optuna.pruners.MedianPruner, "none": optuna.pruners.NopPruner}
    waiting = {"connect_args": {"timeout": 60}}  # seconds, for another process that writes
    with FileLock(path.with_suffix(".lock")):  # two processes may begin the same study
        storage = optuna.storages.RDBStorage(f"sqlite:///{path.as_posix()}", engine_kwargs=waiting)
        return optuna.create_study(
            storage=storage,
            study_name=STUDY,
            direction="maximize",
            load_if_exists=True,
            pruner=pruners[pruner](),
        )
