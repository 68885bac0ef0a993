"""What leans on Optuna's private parts; a test fails when they move.

Optuna lets any process report for a trial and end it, but only by the identifier of the trial in
its storage, which it does not give away.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import optuna


def trial_id(trial: "optuna.Trial | optuna.trial.FrozenTrial") -> int:
    """Return the identifier of a trial in its study's storage, for `optuna.Trial(study, id)`."""
    return trial._trial_id
