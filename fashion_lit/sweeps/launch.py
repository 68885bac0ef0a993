"""Launch a sweep: plan its jobs, run them and print a summary."""

from collections.abc import Sequence
from pathlib import Path

from fashion_lit.config.schema import chosen_name, validate
from fashion_lit.config.settings import Config
from fashion_lit.errors import Stopped, UserError
from fashion_lit.parts.arguments import keyword_fields, named_schema, object_schema
from fashion_lit.runs.directory import RunDirectory
from fashion_lit.runs.signals import StopSignals
from fashion_lit.sweeps.jobs import Job, Queue, plan_jobs
from fashion_lit.sweeps.launchers import Launcher, LocalLauncher, ParallelLauncher
from fashion_lit.sweeps.slurm import SlurmLauncher
from fashion_lit.text import quote_command, quote_if_needed, shorten

MAX_NAME = 120  # bytes of a sweep's name
LAUNCHERS = {"local": LocalLauncher, "parallel": ParallelLauncher, "slurm": SlurmLauncher}


def launch_sweep(
    first: Config, overrides: Sequence[str], arguments: Sequence[str], signals: StopSignals
) -> list[Job]:
    """Plan a multirun, run its jobs and return them.

    Args:
        first: the first job's configuration, which gives the sweep's name and output root.
        overrides: as `prepare_overrides` returns them.
        arguments: the command line as typed.
        signals: watched for a request to stop.

    Raises Stopped and UserError; a job that failed raises nothing.
    """
    sweep_dir = sweep_directory(first)
    jobs = plan_jobs([*overrides, "++test=false"], sweep_dir)
    launcher = build_launcher(first)
    launcher.check([job.config for job in jobs])
    sweep_dir.mkdir(parents=True, exist_ok=True)
    queue = Queue(jobs)
    repeat = repeat_command("train", arguments, sweep_dir.name)
    try:
        launcher.run(queue, signals)
    except Stopped:
        print(f"To continue the sweep:\n  {repeat}")
        raise
    finally:
        print_sweep_end(sweep_dir, [job.run for job in jobs])
    print(f"To continue it, or to add jobs:\n  {repeat}")
    return jobs


def sweep_directory(config: Config) -> Path:
    """Return the directory of a sweep or a search; raises UserError for a name that is none."""
    root, name = config["output_root"], config["sweep_name"]
    if not isinstance(root, str):
        raise UserError(f"Expected `output_root` to be a folder, but got {root!r}.")
    is_name = isinstance(name, str) and 0 < len(name.encode()) <= MAX_NAME and name.isprintable()
    if not is_name or name in (".", "..") or "/" in name or "\\" in name:
        raise UserError(
            f"Expected `sweep_name` to be the name of a folder in {Path(root, 'sweeps')}, of at "
            f"most {MAX_NAME} bytes and without slashes, but got {shorten(repr(name))}; "
            "output_root=DIR puts sweeps/ elsewhere."
        )
    return Path(root, "sweeps", name).absolute()


def repeat_command(command: str, arguments: Sequence[str], name: str) -> str:
    """Return the command line that continues a sweep or a search."""
    given = [text for text in arguments if not text.lstrip("+").startswith("sweep_name=")]
    return quote_command("fashion-lit", command, *given, f"sweep_name={quote_if_needed(name)}")


def build_launcher(config: Config) -> Launcher:
    """Build the launcher of a multirun; raises UserError for invalid launcher settings."""
    arguments = dict(config["launcher"])
    fields = keyword_fields(LAUNCHERS[chosen_name(config, "launcher", LAUNCHERS)])
    validate({"launcher": arguments}, object_schema(launcher=(named_schema(fields), ...)))
    return LAUNCHERS[arguments.pop("name")](**arguments)


def print_sweep_end(sweep_dir: Path, runs: Sequence[RunDirectory]) -> None:
    """Print the state of each job of a multirun, the best first, and the sweep's directory."""
    lines = []
    for run in runs:
        status = (run.status if run.exists else {}) or {"state": "not begun"}
        state = str(status["state"])
        if state == "finished" and not run.is_complete:
            state = "damaged"
        accuracy = run.metrics["val/accuracy"] if state == "finished" else None
        percent = f"{'-':>6}" if accuracy is None else f"{100 * accuracy:6.2f}"
        reason = f"  {status['reason']}" if status.get("reason") else ""
        lines.append((accuracy or 0.0, f"{percent}  {state:<11}  {run.path.name}{reason}"))
    print("\nval acc %  state        job")
    for _, line in sorted(lines, key=lambda item: -item[0]):
        print(f"   {line}")
    print(
        f"\nThe sweep is in {sweep_dir}\n"
        f"  rank the runs:   {quote_command('fashion-lit', 'leaderboard', str(sweep_dir))}\n"
        f"  show the curves: {quote_command('tensorboard', '--logdir', str(sweep_dir))}"
    )
