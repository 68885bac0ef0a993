"""Report a trial's epochs to its study and end the run if the study prunes it.

    callbacks = pruning_from_environment()  # one callback if a search started this process

`search` starts each run as a separate process; an environment variable identifies its trial.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import lightning as L
from filelock import FileLock
from typing_extensions import override

from fashion_lit.errors import UserError
from fashion_lit.training.run import Pruned

if TYPE_CHECKING:
    import optuna

TRIAL_VARIABLE = "FASHION_LIT_TRIAL"
STUDY_FILE = "study.db"  # in the sweep's directory, for `optuna-dashboard sqlite:///…/study.db`
STUDY = "search"
PRUNERS = ("median", "none")
METRIC = "val/accuracy"


class Pruning(L.Callback):
    """Reports val/accuracy after every epoch and raises Pruned if the study's pruner says so.

    Args:
        trial: the trial of this run.
    """

    def __init__(self, trial: "optuna.Trial") -> None:
        self.trial = trial

    @override
    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        should_prune = False
        epochs_done = trainer.current_epoch + 1
        was_validated = epochs_done % (trainer.check_val_every_n_epoch or 1) == 0  # type: ignore[attr-defined]
        if trainer.is_global_zero and was_validated and METRIC in trainer.callback_metrics:
            reported = self.trial.study.trials[self.trial.number]
            if epochs_done not in reported.intermediate_values:  # else it repeats after a resume
                self.trial.report(float(trainer.callback_metrics[METRIC]), epochs_done)
            should_prune = self.trial.should_prune()
        if trainer.strategy.reduce_boolean_decision(should_prune, all=False):
            raise Pruned(f"after epoch {epochs_done} of {trainer.max_epochs}")


def pruning_from_environment() -> list[Pruning]:
    """Return the pruning callback of this process's trial; [] if there is no trial to prune."""
    value = os.environ.get(TRIAL_VARIABLE)
    if not value:
        return []
    import optuna

    try:
        trial = json.loads(value)
        study_file, pruner, number = Path(trial["study"]), str(trial["pruner"]), int(trial["id"])
    except (ValueError, KeyError, TypeError):
        raise UserError(
            f"Expected {TRIAL_VARIABLE} as fashion-lit search sets it for its trials, but got "
            f"{value[:50]!r}; unset it."
        ) from None
    return [Pruning(optuna.Trial(load_study(study_file, pruner), number))]


def trial_environment(sweep_dir: Path, trial_id: int, pruner: str) -> Mapping[str, str]:
    """Return the environment variables that identify a process's trial; {} without a pruner."""
    if pruner == "none":
        return {}
    study = (sweep_dir / STUDY_FILE).absolute().as_posix()
    return {TRIAL_VARIABLE: json.dumps({"study": study, "id": trial_id, "pruner": pruner})}


def load_study(path: Path, pruner: str) -> "optuna.Study":
    """Open a study, or create it if it does not exist.

    Args:
        path: its SQLite file.
        pruner: "median" or "none".
    """
    import optuna
    import sqlalchemy
    import sqlalchemy.exc

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    pruners = {"median": optuna.pruners.MedianPruner, "none": optuna.pruners.NopPruner}
    waiting = {"connect_args": {"timeout": 60}}  # seconds to wait while another process writes
    with FileLock(path.with_suffix(".lock")):  # two processes may create the study at once
        url = sqlalchemy.URL.create("sqlite", database=path.as_posix())  # quotes a "?" or "%20"
        try:
            storage = optuna.storages.RDBStorage(
                url.render_as_string(hide_password=False), engine_kwargs=waiting
            )
            return optuna.create_study(
                storage=storage,
                study_name=STUDY,
                direction="maximize",
                load_if_exists=True,
                pruner=pruners[pruner](),
            )
        except (sqlalchemy.exc.DatabaseError, RuntimeError, KeyError) as error:
            raise UserError(
                f"Expected the study of a search, but {path} cannot be read "
                f"({str(error).splitlines()[0]}); move it away to begin a new one."
            ) from None
