"""The trials of an Optuna study, as jobs that a launcher starts.

Several processes may work on one study. A trial belongs to the process that holds its file lock.
The lock ends with the process, so any other process can finish the trials of a killed one.
"""

import json
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout
from typing_extensions import override

from fashion_lit.config.groups import parse_override
from fashion_lit.config.overrides import prepare_overrides
from fashion_lit.data.randomness import derive_seed
from fashion_lit.errors import UserError
from fashion_lit.sweeps.jobs import Job, JobSource, plan_jobs
from fashion_lit.sweeps.launchers import stopped_by
from fashion_lit.sweeps.optuna_internals import trial_id
from fashion_lit.sweeps.pruning import METRIC, trial_environment

if TYPE_CHECKING:
    import optuna

SAMPLERS = ("tpe", "random")
LOCKS = ".search"  # in the sweep's directory: one lock file for each trial


class Trials(JobSource):
    """The trials of a study: first those that a stopped process left unfinished, then new ones.

    Args:
        study: the study that records the trials.
        space: the distribution of each searched setting.
        fixed: the overrides that all trials share.
        sweep_dir: the folder of the trials' run directories.
        num_trials: the number of trials in all processes together.
        sampler: "tpe" or "random".
        pruner: "median" or "none".
        seed: seed of the sampler.
    """

    def __init__(
        self,
        study: "optuna.Study",
        space: dict[str, "optuna.distributions.BaseDistribution"],
        fixed: Sequence[str],
        sweep_dir: Path,
        *,
        num_trials: int,
        sampler: str,
        pruner: str,
        seed: int,
    ) -> None:
        self.study = study
        self.space = space
        self.fixed = list(fixed)
        self.sweep_dir = sweep_dir
        (sweep_dir / LOCKS).mkdir(exist_ok=True)
        self.total = num_trials
        self.sampler = sampler
        self.pruner = pruner
        self.seed = seed
        self.any_failed = False
        self._locks: dict[int, FileLock] = {}  # by a trial's number
        self._running: dict[Path, optuna.Trial] = {}  # by its run directory
        self._exhausted = False

    @property
    @override
    def num_done(self) -> int:
        """The number of trials that have ended, in any process."""
        return sum(trial.state.is_finished() for trial in self.study.get_trials(deepcopy=False))

    @property
    @override
    def is_exhausted(self) -> bool:
        """Whether every trial has ended or belongs to a process."""
        return self._exhausted

    @override
    def take(self) -> Job | None:
        """Return an unfinished or a new trial, or None; record trials whose runs have ended."""
        self._exhausted = True
        waiting: set[int] = set()
        while True:
            with FileLock(self.sweep_dir / LOCKS / "study.lock"):
                trial = self._adopt(waiting) or self._ask()
            if trial is None:
                return None
            job = self._job(trial)
            if job is None:
                self._end(trial, "FAIL")
            elif job.run.exists and job.run.is_locked():  # by a run whose search was killed
                waiting.add(trial.number)
                self._release(trial)
                self._exhausted = False
            elif not self._record(trial, job):
                self._running[job.run.path] = trial
                return job

    @override
    def give_back(self, job: Job, exit_code: int) -> None:
        """Record in the study how a trial ended; release a stopped trial so that it can resume."""
        trial = self._running.pop(job.run.path)
        if self._record(trial, job):
            return
        if stopped_by(exit_code) or (job.run.exists and job.run.is_locked()):
            self._release(trial)
        else:
            self._end(trial, "FAIL")

    def _adopt(self, without: Collection[int]) -> "optuna.Trial | None":
        """Lock and return a running trial that no process holds, or return None."""
        import optuna

        running = (optuna.trial.TrialState.RUNNING,)
        for known in self.study.get_trials(deepcopy=False, states=running):
            if known.number in without or known.number in self._locks:
                continue
            if self._hold(known.number):
                trial = optuna.Trial(self.study, trial_id(known))
                if self.study.trials[known.number].state.is_finished():  # since the query
                    self._release(trial)
                    continue
                return trial
        return None

    def _ask(self) -> "optuna.Trial | None":
        num_trials = len(self.study.get_trials(deepcopy=False))
        if num_trials >= self.total:
            return None
        self.study.sampler = make_sampler(self.sampler, self.seed, num_trials)
        trial = self.study.ask(self.space)
        held = self._hold(trial.number)
        assert held, "no other process can hold a trial that has just been created"
        return trial

    def _job(self, trial: "optuna.Trial") -> Job | None:
        """Return a trial's job; if its settings are invalid, print the error and return None."""
        drawn = [f"{key}={value}" for key, value in trial.params.items()]
        name = f"trial_{trial.number:04}"
        try:
            (job,) = plan_jobs([*self.fixed, *prepare_overrides(drawn)], self.sweep_dir, name)
        except UserError as error:
            print(f"trial {trial.number}: {error}", file=sys.stderr, flush=True)
            return None
        environment = trial_environment(self.sweep_dir, trial_id(trial), self.pruner)
        return replace(job, title=", ".join(drawn), environment=environment)

    def _record(self, trial: "optuna.Trial", job: Job) -> bool:
        """Record the result of a trial's run in the study; return whether the run has ended."""
        state = job.run.status.get("state") if job.run.exists else None
        if state == "finished" and job.run.is_complete:
            self._end(trial, "COMPLETE", job.run.metrics[METRIC])
        elif state in ("pruned", "failed"):
            self._end(trial, "PRUNED" if state == "pruned" else "FAIL")
        else:
            return False
        return True

    def _end(self, trial: "optuna.Trial", state: str, value: float | None = None) -> None:
        import optuna

        self.study.tell(trial, value, optuna.trial.TrialState[state])
        self.any_failed |= state == "FAIL"
        self._release(trial)

    def _hold(self, number: int) -> bool:
        lock = FileLock(self.sweep_dir / LOCKS / f"trial_{number:04}.lock", timeout=0)
        try:
            lock.acquire()
        except Timeout:
            return False
        self._locks[number] = lock
        return True

    def _release(self, trial: "optuna.Trial") -> None:
        self._locks.pop(trial.number).release()


def make_sampler(name: str, seed: int, num_trials: int) -> "optuna.samplers.BaseSampler":
    """Build the sampler of the next trial.

    Its draws depend only on `seed`, the number of earlier trials and those trials' results.
    """
    from optuna import samplers

    derived = derive_seed(seed, num_trials) % 2**32
    kinds = {"tpe": samplers.TPESampler, "random": samplers.RandomSampler}
    return kinds[name](seed=derived)


def check_same_search(
    study: "optuna.Study",
    space: Mapping[str, "optuna.distributions.BaseDistribution"],
    fixed: Sequence[str],
) -> None:
    """Record the space and fixed settings in a new study.

    Raises UserError if the study was started with others.
    """
    elsewhere = ("output_root", "sweep_name", "launcher")
    keys = {text: parse_override(text).key_or_group.split(".")[0] for text in fixed}
    wanted = {
        "space": {key: str(values) for key, values in sorted(space.items())},
        "settings": sorted(text.lstrip("+") for text in fixed if keys[text] not in elsewhere),
    }
    recorded = study.user_attrs
    for key, value in wanted.items():
        if key not in recorded:
            study.set_user_attr(key, value)
        elif recorded[key] != value:
            raise UserError(
                f"Expected the {key} that this search began with, {json.dumps(recorded[key])}, "
                f"but got {json.dumps(value)}; choose another sweep_name."
            )
