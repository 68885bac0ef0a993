"""SlurmLauncher without SLURM: small scripts replace its commands."""

import json
import os
import re
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
from typing_extensions import override

from fashion_lit.commands.train import main
from fashion_lit.config.compose import compose_jobs
from fashion_lit.config.overrides import prepare_overrides
from fashion_lit.errors import Stopped, UserError
from fashion_lit.runs.directory import RunDirectory
from fashion_lit.runs.signals import StopSignals
from fashion_lit.sweeps import slurm
from fashion_lit.sweeps.jobs import Job, Queue, plan_jobs
from fashion_lit.sweeps.launch import build_launcher
from fashion_lit.sweeps.slurm import FOLDER, SlurmLauncher, read_queue

if os.name == "nt":
    pytest.skip(
        "SLURM's clusters run Linux; the scripts need a POSIX shell", allow_module_level=True
    )
pytest.importorskip("submitit", reason='needs submitit: pip install -e ".[slurm]"')

# A fake SLURM. The folder `state` holds the submitted scripts, 1.sh, 2.sh, …, and the files that
# control its behaviour; the folder `queue` holds a file for each job that waits or runs.
BEGIN = """
import os, shutil, socket, subprocess, sys
from pathlib import Path
here = Path(__file__).parent
state, queue = here / "state", here / "queue"
"""
SCRIPTS = {
    # Accepts a script, as an array or as one job; runs the jobs if `state` has "jobs_run".
    "sbatch": """
if (state / "sbatch_error").exists():
    sys.exit((state / "sbatch_error").read_text())
number = str(1 + len(list(state.glob("*.sh"))))
script = shutil.copy(sys.argv[1], state / f"{number}.sh")
words = [line.partition("=") for line in Path(script).read_text().splitlines()]
(indices,) = [value for name, _, value in words if name == "#SBATCH --array"] or [""]
last = indices.partition("%")[0].partition("-")[2]
jobs = [f"{number}_{i}" for i in range(int(last) + 1)] if indices else [number]
for job in jobs:
    (queue / job).touch()
print("Submitted batch job", number)
if (state / "jobs_run").exists():
    nothing = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
    for job in jobs:
        command = [here / "slurmd", job]
        process = subprocess.Popen(command, start_new_session=True, **nothing)
        (state / f"{job}.group").write_text(str(process.pid))
""",
    # Runs one job on a node, again each time it is requeued.
    "slurmd": """
job = sys.argv[1]
number, _, index = job.partition("_")
given = {"JOB_ID": number, "JOB_NODELIST": socket.gethostname(), "JOB_NAME": "fashion-lit"}
given |= dict.fromkeys(("NTASKS", "NTASKS_PER_NODE", "JOB_NUM_NODES", "NNODES"), "1")
given |= dict.fromkeys(("NODEID", "PROCID", "LOCALID"), "0")
given |= {"ARRAY_JOB_ID": number, "ARRAY_TASK_ID": index} if index else {}
others = {key: value for key, value in os.environ.items() if not key.startswith("SLURM_")}
environment = others | {f"SLURM_{key}": value for key, value in given.items()}
again = state / f"{job}.again"
while True:
    subprocess.run(["/bin/sh", state / f"{number}.sh"], env=environment)
    if not again.exists():
        break
    again.unlink()
(queue / job).unlink()
""",
    # Replaces itself by the given command, with its output in the given files.
    "srun": """
unbuffered, output, out, error, err, *command = sys.argv[1:]
assert (unbuffered, output, error) == ("--unbuffered", "--output", "--error")
number, index = (os.environ.get(f"SLURM_{key}", "") for key in ("JOB_ID", "ARRAY_TASK_ID"))
patterns = {"%A": number, "%j": number, "%a": index, "%t": "0"}
for stream, name in ((1, out), (2, err)):
    for pattern, value in patterns.items():
        name = name.replace(pattern, value)
    os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
(state / "_".join(filter(None, (number, index)))).with_suffix(".pid").write_text(str(os.getpid()))
os.execvp(command[0], command)
""",
    # Lists the jobs, or fails once for each line in a file.
    "squeue": """
trouble = state / "squeue_errors"
errors = trouble.read_text().splitlines() if trouble.exists() else []
if errors:
    trouble.write_text("\\n".join(errors[1:]))
    sys.exit(errors[0])
assert sys.argv[1:] == ["--me", "--noheader", "--array", "--format=%i"]
print(*sorted(path.name for path in queue.iterdir()), sep="\\n")
""",
    "scontrol": """
assert sys.argv[1] == "requeue"
(state / f"{sys.argv[2]}.again").touch()
""",
}


class Cluster:
    """A fake SLURM in a folder.

    Args:
        folder: the folder of its commands, which is added to PATH.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.state = folder / "state"
        self.queue = folder / "queue"
        for path in (self.state, self.queue):
            path.mkdir(parents=True)
        for name, text in SCRIPTS.items():
            command, script = folder / name, folder / f"{name}.py"
            script.write_text(BEGIN + text)
            words = shlex.join((sys.executable, str(script)))
            command.write_text(f'#!/bin/sh\nexec {words} "$@"\n')
            command.chmod(0o755)

    @property
    def submitted(self) -> list[dict[str, str]]:
        """The options of each submitted script, in the order of submission."""
        scripts = [self.state / f"{number}.sh" for number in range(1, 1 + self.num_submitted)]
        return [
            dict(re.findall(r"^#SBATCH --([^=\n]+)=?(.*)$", script.read_text(), re.MULTILINE))
            for script in scripts
        ]

    @property
    def num_submitted(self) -> int:
        """The number of calls of sbatch."""
        return len(list(self.state.glob("*.sh")))

    def end(self, *numbers: str) -> None:
        """Remove jobs from the queue."""
        for number in numbers:
            (self.queue / number).unlink()

    def preempt(self, number: str) -> None:
        """Signal a job as SLURM does before it preempts it."""
        os.kill(int((self.state / f"{number}.pid").read_text()), signal.SIGUSR2)

    def close(self) -> None:
        """Kill all processes that still run."""
        for path in self.queue.iterdir():
            group = self.state / f"{path.name}.group"
            with suppress(ProcessLookupError):
                if group.exists():
                    os.killpg(int(group.read_text()), signal.SIGKILL)


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """Return a fake SLURM whose jobs wait for ever unless `state` has the file "jobs_run"."""
    made = Cluster(tmp_path / "cluster")
    monkeypatch.setenv("PATH", str(made.folder), prepend=os.pathsep)
    monkeypatch.setattr(slurm, "QUEUE_SECONDS", 0.05)
    yield made
    made.close()


BetweenLooks = Callable[[Callable[[], None]], None]


@pytest.fixture
def between_looks(monkeypatch: pytest.MonkeyPatch) -> BetweenLooks:
    """Call a function after each wait between two queries of the queue; fail if that never ends."""

    def install(act: Callable[[], None]) -> None:
        began = time.monotonic()

        def sleep(seconds: float) -> None:
            assert time.monotonic() - began < 120, "the queue does not get empty"
            time.sleep(seconds)
            act()

        monkeypatch.setattr(slurm, "time", SimpleNamespace(sleep=sleep))

    return install


def make_launcher(*overrides: str) -> SlurmLauncher:
    """Build the launcher from conf/launcher/slurm.yaml and overrides."""
    (config,) = compose_jobs(prepare_overrides(["launcher=slurm", *overrides]), multirun=False)
    launcher = build_launcher(config)
    assert isinstance(launcher, SlurmLauncher)
    return launcher


def make_jobs(folder: Path, *overrides: str) -> list[Job]:
    return plan_jobs(prepare_overrides(["trainer.accelerator=cpu", *overrides]), folder / "sweep")


def finish(run: RunDirectory) -> None:
    run.path.mkdir(exist_ok=True)
    run.create({"seed": 0, "trainer": {"max_epochs": 1}})
    run.write_status("finished")
    run.write_metrics({"val/accuracy": 0.5})


def test_jobs_are_an_array_for_each_number_of_processes(
    cluster: Cluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    jobs = make_jobs(tmp_path, "trainer.devices=2,1", "seed=0,1,2")
    jobs += make_jobs(tmp_path, "trainer.devices=2", "trainer.num_nodes=3")
    numbers = make_launcher("launcher.num_jobs=2").attach(jobs)
    parts = ("array", "nodes", "ntasks-per-node")
    assert [[options.get(part) for part in parts] for options in cluster.submitted] == [
        ["0-2%2", "1", "1"],
        ["0-2%2", "1", "2"],
        [None, "3", "2"],  # a single job is not an array
    ]
    expected = [*jobs[3:6], *jobs[:3], jobs[6]]
    names = ["1_0", "1_1", "1_2", "2_0", "2_1", "2_2", "3"]
    assert numbers == dict(zip(names, expected, strict=True))
    assert numbers.keys() == read_queue()
    lines = [f"submitted as {n}: {job.run.path.name}" for n, job in numbers.items()]
    assert capsys.readouterr().out.splitlines() == lines


def test_a_refused_array_is_one_sentence_and_earlier_ones_are_recorded(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    launcher, jobs = make_launcher(), make_jobs(tmp_path, "seed=0,1")
    (cluster.state / "sbatch_error").write_text("sbatch: error: Invalid account")
    with pytest.raises(UserError, match=r"sbatch refused them: .*Invalid account"):
        launcher.attach(jobs)

    def submit(jobs: Sequence[Job], folder: Path) -> Iterator[dict[str, Job]]:
        yield {"7_0": jobs[0]}
        raise UserError("refused")

    monkeypatch.setattr(launcher, "submit", submit)
    with pytest.raises(UserError, match="refused"):
        launcher.attach(jobs)
    known = json.loads((jobs[0].run.path.parent / FOLDER / "jobs.json").read_text())
    assert known == {jobs[0].run.path.name: "7_0"}


def test_launcher_settings_reach_sbatch(cluster: Cluster, tmp_path: Path) -> None:
    launcher = make_launcher(
        *("launcher.partition=long", "launcher.time_minutes=90", "launcher.cpus_per_task=3"),
        *("launcher.memory_gb=1.5", "launcher.gpus_per_node=2", "launcher.warning_seconds=45"),
        *("launcher.sbatch.account=x", "launcher.sbatch.qos=low"),
        "launcher.sbatch.reservation=null",
    )
    launcher.attach(make_jobs(tmp_path, "seed=0,1"))
    make_launcher().attach(make_jobs(tmp_path, "seed=2,3"))
    given, by_default = cluster.submitted
    wanted = {
        **{"partition": "long", "time": "90", "cpus-per-task": "3", "mem": "1536MB"},
        **{"gpus-per-node": "2", "signal": "USR2@45", "account": "x", "qos": "low"},
        **{"array": "0-1%2", "job-name": "fashion-lit_sweep"},
    }
    assert {name: given.get(name) for name in wanted} == wanted
    assert "reservation" not in given
    left_to_the_cluster = {"partition", "mem", "gpus-per-node", "account", "qos"}
    assert not left_to_the_cluster & by_default.keys()
    wanted = {"time": "60", "cpus-per-task": "2", "signal": "USR2@90"}
    assert {name: by_default.get(name) for name in wanted} == wanted


def test_a_job_has_its_command_and_as_many_threads_as_cores(
    cluster: Cluster, tmp_path: Path
) -> None:
    from submitit.core.utils import DelayedSubmission

    jobs = make_jobs(tmp_path, "seed=0,1")
    jobs[1] = Job(jobs[1].run, jobs[1].overrides, jobs[1].config, environment={"TRIAL": "7"})
    numbers = make_launcher("launcher.cpus_per_task=3").attach(jobs)
    assert list(numbers.values()) == jobs
    for (number, job), more in zip(numbers.items(), ({}, {"TRIAL": "7"}), strict=True):
        file = tmp_path / "sweep" / slurm.FOLDER / f"{number}_submitted.pkl"
        task = DelayedSubmission.load(file).function
        assert task.command == job.command
        assert task.environment == {"OMP_NUM_THREADS": "3"} | more
        assert task.log_file == job.log_file


def test_queued_jobs_are_not_submitted_again(
    cluster: Cluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    launcher = make_launcher()
    jobs = make_jobs(tmp_path, "seed=0,1,2")
    names = [job.run.path.name for job in jobs]
    assert launcher.attach(jobs[:2]) == {"1_0": jobs[0], "1_1": jobs[1]}
    capsys.readouterr()
    assert launcher.attach(jobs[:2]) == {"1_0": jobs[0], "1_1": jobs[1]}
    lines = [f"already queued as 1_0: {names[0]}", f"already queued as 1_1: {names[1]}"]
    assert capsys.readouterr().out.splitlines() == lines
    assert cluster.num_submitted == 1

    cluster.end("1_0")  # cancelled, or killed with its node
    assert launcher.attach(jobs) == {"1_1": jobs[1], "2_0": jobs[0], "2_1": jobs[2]}
    lines = [lines[1], f"submitted as 2_0: {names[0]}", f"submitted as 2_1: {names[2]}"]
    assert capsys.readouterr().out.splitlines() == lines
    record = json.loads((tmp_path / "sweep" / slurm.FOLDER / "jobs.json").read_text())
    assert record == dict(zip(names, ("2_0", "1_1", "2_1"), strict=True))


def test_jobs_continue_after_ctrl_c_and_the_same_command_watches_them(
    cluster: Cluster,
    between_looks: BetweenLooks,
    tmp_path: Path,
    small: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    between_looks(lambda: signal.raise_signal(signal.SIGINT))
    place = [f"output_root={tmp_path.as_posix()}", "sweep_name=s"]
    command = ["-m", *small, *place, "launcher=slurm", "seed=0,1"]
    for words in ("submitted as", "already queued as"):
        assert main(command) == 130
        out = capsys.readouterr().out
        assert [out.count(f"{words} 1_{i}: seed={i}-") for i in (0, 1)] == [1, 1]
        assert "The cluster's jobs continue; the same command watches them." in out
        assert "To cancel them:\n  scancel 1_0 1_1\n" in out
        assert "To continue the sweep:\n  fashion-lit train -m " in out
        assert out.count("not begun") == 2
        assert cluster.num_submitted == 1
    assert read_queue() == {"1_0", "1_1"}


def test_a_stopped_wait_prints_how_to_cancel_the_jobs(
    cluster: Cluster,
    between_looks: BetweenLooks,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def stop_at_the_second_look() -> None:
        if "1_0" not in read_queue():
            raise Stopped(signal.SIGTERM)
        cluster.end("1_0")

    between_looks(stop_at_the_second_look)
    with pytest.raises(Stopped):
        make_launcher().run(Queue(make_jobs(tmp_path, "seed=0,1,2")), StopSignals())
    assert "  scancel 1_1 1_2\n" in capsys.readouterr().out  # not the jobs that have ended


class Watched(Queue):
    """A multirun's jobs; records the exit codes passed to `give_back`."""

    def __init__(self, jobs: list[Job]) -> None:
        super().__init__(jobs)
        self.exit_codes: dict[str, int] = {}

    @override
    def give_back(self, job: Job, exit_code: int) -> None:
        super().give_back(job, exit_code)
        self.exit_codes[job.title] = exit_code


STATES = ("finished", "failed", "killed", "not begun")


def test_a_job_that_leaves_the_queue_unfinished_has_failed(
    cluster: Cluster,
    between_looks: BetweenLooks,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    jobs = make_jobs(tmp_path, "seed=0,1,2,3")
    finished, failed, killed, never = (job.run for job in jobs)

    def end_all() -> None:
        for run in (failed, killed):
            run.path.mkdir()
            run.create({"seed": 0})
        finish(finished)
        failed.write_status("failed", reason="Out of GPU memory")
        killed.write_status("running")
        cluster.end("1_0", "1_1", "1_2", "1_3")

    between_looks(end_all)
    queue = Watched(jobs)
    make_launcher().run(queue, StopSignals())
    assert queue.exit_codes == {f"job {i} of 4": int(i > 1) for i in (1, 2, 3, 4)}
    assert len(queue.failed) == 3
    out = capsys.readouterr().out
    states = dict(zip((finished, failed, killed, never), STATES, strict=True))
    for number, (run, state) in enumerate(states.items(), start=1):
        assert re.search(rf"{state} .* job {number} of 4: {re.escape(run.path.name)}\n", out)
    assert f"\n  Out of GPU memory (see {failed.path}.log)\n" in out
    assert f"\n  its process was killed or crashed (see {killed.path}.log)\n" in out
    assert f"\n  no output (see {never.path}.log)\n" in out


def test_missing_commands_and_packages_end_in_one_sentence(
    cluster: Cluster,
    tmp_path: Path,
    small: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = ["-m", *small, f"output_root={(tmp_path / 'out').as_posix()}", "launcher=slurm"]
    make_launcher().check([])
    monkeypatch.setattr(slurm, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"^Expected submitit for launcher=slurm, but it is not"):
        make_launcher().check([])
    assert main(command) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith('it is not installed: pip install -e ".[slurm]"')
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    assert main(command) == 2  # if both are missing, it names SLURM, which pip cannot install
    (line,) = capsys.readouterr().err.splitlines()
    assert "Expected the command `sbatch` for launcher=slurm, but there is none" in line
    assert not (tmp_path / "out").exists()


def test_devices_that_are_not_a_number_are_refused(cluster: Cluster) -> None:
    launcher = make_launcher()
    launcher.check([{"trainer": {"devices": 2}}])
    with pytest.raises(UserError, match="to be a number under launcher=slurm"):
        launcher.check([{"trainer": {"devices": 1}}, {"trainer": {"devices": "auto"}}])


def test_a_failing_squeue_is_repeated(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(slurm, "QUEUE_SECONDS", 0)
    (cluster.queue / "7").touch()
    errors = ["slurm_load_jobs error: Unable to contact slurm controller", "timed out"]
    (cluster.state / "squeue_errors").write_text("\n".join(errors))
    assert read_queue() == {"7"}
    lines = [f"squeue: {error}; retrying" for error in errors]
    assert capsys.readouterr().err.splitlines() == lines
    cluster.end("7")
    assert read_queue() == set()


@dataclass(frozen=True)
class Script(Job):
    """Return a job that runs a few lines of Python with the run's directory as argument."""

    code: str = ""

    @property
    @override
    def command(self) -> list[str]:
        return [sys.executable, "-c", self.code, str(self.run.path)]


SAVE_WHEN_ASKED = """
import signal, sys, time
from pathlib import Path

run = Path(sys.argv[1])
run.mkdir(exist_ok=True)

def save(*_):
    (run / "saved").touch()
    sys.exit(143)

signal.signal(signal.SIGTERM, save)
if (run / "saved").exists():
    (run / "config.yaml").write_text("seed: 0")
    (run / "status.json").write_text('{"state": "finished"}')
    print("gone on")
else:
    print("begun", flush=True)
    (run / "is_ready").touch()
    time.sleep(100)
"""


def test_a_preempted_job_saves_and_is_requeued(
    cluster: Cluster, between_looks: BetweenLooks, tmp_path: Path
) -> None:
    (cluster.state / "jobs_run").touch()
    run = RunDirectory(tmp_path / "sweep" / "a")
    config = {"trainer": {"max_epochs": 1, "devices": 1}}
    queue = Watched([Script(run, (), config, code=SAVE_WHEN_ASKED)])

    def preempt_once() -> None:
        with suppress(FileNotFoundError):
            (run.path / "is_ready").unlink()
            cluster.preempt("1")

    between_looks(preempt_once)
    make_launcher().run(queue, StopSignals())
    logs = {p.name: p.read_text() for p in (tmp_path / "sweep" / slurm.FOLDER).glob("1_0_log.*")}
    assert queue.exit_codes == {"job": 0}, logs
    assert (run.path / "saved").exists()
    assert run.path.with_name("a.log").read_text() == "begun\ngone on\n"
    assert any("this job is preempted" in text for text in logs.values())
    assert cluster.num_submitted == 1  # SLURM queued it again, not this project


def test_a_multirun_on_a_cluster_ends_in_finished_runs(
    cluster: Cluster,
    between_looks: BetweenLooks,
    tmp_path: Path,
    small: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    between_looks(lambda: None)
    (cluster.state / "jobs_run").touch()
    place = [f"output_root={tmp_path.as_posix()}", "sweep_name=s", "launcher=slurm"]
    command = ["-m", *small, *place, "model.network.widths=[4,4,4]", "seed=0,1"]
    code = main([*command, "launcher.cpus_per_task=1"])
    out = capsys.readouterr().out
    sweep_dir = tmp_path / "sweeps" / "s"
    logs = {path.name: path.read_text() for path in sweep_dir.glob(".slurm/*_log.*")}
    assert code == 0, (out, logs)
    runs = [RunDirectory(path.parent) for path in sorted(sweep_dir.glob("*/config.yaml"))]
    assert [run.config["seed"] for run in runs] == [0, 1]
    for i, run in enumerate(runs):
        assert run.status["state"] == "finished"
        assert 0 <= run.metrics["val/accuracy"] <= 1
        assert run.last_checkpoint.exists()
        assert run.path.with_name(f"{run.path.name}.log").stat().st_size > 0
        assert f"submitted as 1_{i}: {run.path.name}" in out
        assert re.search(rf"finished .* s  job {i + 1} of 2: {re.escape(run.path.name)}\n", out)
    assert read_queue() == set()

    assert main(command) == 0  # nothing is left to do
    assert capsys.readouterr().out.count("(finished before)") == 2
    assert cluster.num_submitted == 1
