"""All uses of Optuna's private attributes; a test fails if they disappear.

Optuna lets any process report for a trial and end it, but only by the trial's identifier in the
storage, which has no public accessor.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import optuna


def trial_id(trial: "optuna.Trial | optuna.trial.FrozenTrial") -> int:
    """Return a trial's identifier in its study's storage, for `optuna.Trial(study, id)`."""
    return trial._trial_id
