"""The trials of an Optuna study, as jobs that a launcher starts.

Several processes may work on one study. A trial belongs to the process that holds its lock, which
ends with the process, so what a killed one leaves behind is found and finished by any other.
"""

import json
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout
from typing_extensions import override

from fashion_lit.config.compose import parse_override, prepare_overrides
from fashion_lit.data.randomness import derive_seed
from fashion_lit.errors import UserError
from fashion_lit.sweeps.jobs import plan_jobs
from fashion_lit.sweeps.launchers import Job, JobSource, stopped_by
from fashion_lit.sweeps.optuna_internals import trial_id
from fashion_lit.sweeps.pruning import METRIC, trial_environment

if TYPE_CHECKING:
    import optuna

SAMPLERS = ("tpe", "random")
LOCKS = ".search"  # in the sweep's directory: whose trial is whose


class Trials(JobSource):
    """Those that a stopped process left behind first, then new ones.

    Args:
        study: where they are recorded.
        space: what is searched.
        fixed: the overrides that all trials share.
        sweep_dir: where their runs lie.
        num_trials: how many in all.
        sampler: "tpe" or "random".
        pruner: "median" or "none".
        seed: of the sampler.
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
        """How many trials have ended, in any process."""
        return sum(trial.state.is_finished() for trial in self.study.get_trials(deepcopy=False))

    @property
    @override
    def is_exhausted(self) -> bool:
        """Whether all trials have ended, or belong to a process."""
        return self._exhausted

    @override
    def take(self) -> Job | None:
        """Return a trial that was left behind, or a new one; records what is done already."""
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
            elif job.run.exists and job.run.is_locked():  # by a process whose parent was killed
                waiting.add(trial.number)
                self._release(trial)
                self._exhausted = False
            elif not self._record(trial, job):
                self._running[job.run.path] = trial
                return job

    @override
    def give_back(self, job: Job, exit_code: int) -> None:
        """Tell the study how a trial ended; one that was stopped goes on another time."""
        trial = self._running.pop(job.run.path)
        if self._record(trial, job):
            return
        if stopped_by(exit_code) or (job.run.exists and job.run.is_locked()):
            self._release(trial)
        else:
            self._end(trial, "FAIL")

    def _adopt(self, without: Collection[int]) -> "optuna.Trial | None":
        """Return a trial that was begun and that no process holds, now held by this one."""
        import optuna

        running = (optuna.trial.TrialState.RUNNING,)
        for known in self.study.get_trials(deepcopy=False, states=running):
            if known.number in without or known.number in self._locks:
                continue
            if self._hold(known.number):
                trial = optuna.Trial(self.study, trial_id(known))
                if self.study.trials[known.number].state.is_finished():  # a moment ago
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
        assert held, "nobody else can hold a trial that did not exist"
        return trial

    def _job(self, trial: "optuna.Trial") -> Job | None:
        """Return a trial's run, or None, and say so, if its settings cannot be."""
        drawn = [f"{key}={value}" for key, value in trial.params.items()]
        name = f"trial_{trial.number:04}"
        try:
            (job,) = plan_jobs([*self.fixed, *prepare_overrides(drawn)], self.sweep_dir, name)
        except UserError as error:
            print(f"trial {trial.number}: {error}", file=sys.stderr, flush=True)
            return None
        told = trial_environment(self.sweep_dir, trial_id(trial), self.pruner)
        return replace(job, title=", ".join(drawn), environment=told)

    def _record(self, trial: "optuna.Trial", job: Job) -> bool:
        """Tell the study how a trial's run ended, if it has ended by itself."""
        state = job.run.status.get("state") if job.run.exists else None
        if state == "finished":
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
    """Return what draws the next trial: a function of the seed and the trials before it."""
    from optuna import samplers

    derived = derive_seed(seed, num_trials) % 2**32
    kinds = {"tpe": samplers.TPESampler, "random": samplers.RandomSampler}
    return kinds[name](seed=derived)


def check_same_search(
    study: "optuna.Study",
    space: Mapping[str, "optuna.distributions.BaseDistribution"],
    fixed: Sequence[str],
) -> None:
    """Raise UserError if the study was begun with another space or other settings."""
    elsewhere = ("output_root", "sweep_name", "launcher")
    keys = {text: parse_override(text).key_or_group.split(".")[0] for text in fixed}
    wanted = {
        "space": {key: str(values) for key, values in sorted(space.items())},
        "settings": sorted(text.lstrip("+") for text in fixed if keys[text] not in elsewhere),
    }
    begun = study.user_attrs
    for key, value in wanted.items():
        if key not in begun:
            study.set_user_attr(key, value)
        elif begun[key] != value:
            raise UserError(
                f"Expected the {key} that this search was begun with, {json.dumps(begun[key])}, "
                f"but got {json.dumps(value)}; choose another sweep_name."
            )
