"""The stages that run the project's tests on a machine with a GPU, and with training on it."""

import re
import shutil
from collections import Counter
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from sys import executable

from commands import ROOT, Turn
from results import Outcome

TESTS = ("end_to_end/test_cuda.py", "training", "data", "evaluation", "models", "benchmarking")
SMALL_TESTS = ("end_to_end/test_cuda.py", "training/test_device.py", "data")
TRAINING_TESTS = ("end_to_end", "runs")
SMALL_TRAINING_TESTS = ("end_to_end/test_train.py",)
NEED_A_CPU = (  # tests whose assertions hold only on a CPU
    # It trains in two processes, which would share the one GPU.
    "runs/test_resume_checkpoints.py::test_a_step_of_several_ranks_asks_nothing_else",
    # The number of CPU threads does not change a GPU's result, so it is not recorded.
    "runs/test_resume.py::test_changed_environment_is_told",
    # It compares two trainings bit by bit, without trainer.deterministic.
    "runs/test_resume.py::test_new_run_departs_from_a_checkpoint_whose_run_is_gone",
)


def tests(turn: Turn) -> Outcome:
    """Run the tests that depend on the device, including those marked `cuda`."""
    return run_tests(turn, SMALL_TESTS if turn.check.small else TESTS, ROOT)


def tests_on_gpu(turn: Turn) -> Outcome:
    """Run the tests that train, in a copy of the project where they train on the GPU, if any."""
    copy = turn.check.work / "copy"
    for name in ("fashion_lit", "conf", "tests"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, copy / name, ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", copy)
    (copy / "data").symlink_to(ROOT / "data")
    for path in (copy / "tests").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        text = text.replace("trainer.accelerator=cpu", "trainer.accelerator=auto")
        path.write_text(text, encoding="utf-8")
    names = SMALL_TRAINING_TESTS if turn.check.small else TRAINING_TESTS
    return run_tests(turn, names, copy, without=NEED_A_CPU)


def run_tests(
    turn: Turn, names: Sequence[str], folder: Path, without: Sequence[str] = ()
) -> Outcome:
    """Run these tests, except those in `without`, on the project's code in `folder`."""
    small = turn.check.small
    options = ["-v", "-rfE", "--tb=line", "-p", "no:cacheprovider", "-m", "not long"]
    options += ["-o", "addopts=", f"--basetemp={turn.check.work / f'pytest_{folder.name}'}"]
    if find_spec("xdist"):
        options += ["-n", "1" if small else "5", "--dist", "worksteal"]
    if find_spec("pytest_timeout"):
        options += ["--timeout", "600" if small else "100"]
    options += [f"--deselect=tests/{name}" for name in without]
    files = [f"tests/{name}" for name in names]
    done = turn.run([executable, "-m", "pytest", *options, *files], folder=folder)

    outcomes = read_outcomes(done.out)
    counts = dict(sorted(Counter(outcomes.values()).items()))
    failed = [name for name, word in outcomes.items() if word in ("FAILED", "ERROR")]
    lines = done.out.splitlines()
    reasons = [line[:300] for line in lines if line.startswith(("FAILED", "ERROR"))]
    summary = ", ".join(f"{count} {word.lower()}" for word, count in counts.items())
    summary = summary or done.last_words
    if done.code is None:
        summary += ", stopped before the end"
    if failed:
        summary += f": {', '.join(name.split('::')[-1] for name in failed[:12])}"
    figures = {"counts": counts, "failed": failed, "reasons": reasons, "exit": done.code}
    return Outcome(done.ok, summary, figures)


def read_outcomes(screen: str) -> dict[str, str]:
    """Parse the outcome of each test from pytest's lines, as its summary may be missing."""
    outcomes = {}
    for line in screen.splitlines():
        word = re.search(r"\b(PASSED|FAILED|ERROR|SKIPPED|XFAIL)\b", line)
        test = re.search(r"(tests/\S+::\S+)", line)
        if word and test:
            outcomes[test[1]] = word[1]
    return outcomes
