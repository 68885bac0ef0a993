"""The command line: fashion-lit COMMAND, or python -m fashion_lit COMMAND."""

import gc
import os
import sys
from importlib import import_module
from typing import Any, TextIO

from fashion_lit import __version__

# name: description in `fashion-lit --help`; the module in `commands` has a `main(arguments)`
COMMANDS = {
    "train": "train, validate and test one classifier, or several (-m)",
    "find-lr": "find a learning rate by a range test, without a run",
    "search": "search for good settings with Optuna",
    "evaluate": "evaluate runs or an ensemble and write an HTML page",
    "benchmark": "compare the speed with the course reports' method",
    "leaderboard": "rank the runs of a sweep",
}

# After how many new objects Python looks for garbage. At its default, 700, it does so a thousand
# times while torch and Lightning are imported, which takes a sixth of a command's start.
NUM_NEW_OBJECTS = 10_000


def main() -> None:
    """Dispatch to a command and exit with its exit code."""
    make_output_robust()
    gc.set_threshold(NUM_NEW_OBJECTS)
    command, *arguments = sys.argv[1:] or ["--help"]
    if command in ("-h", "--help"):
        print(usage())
        sys.exit(0)
    if command == "--version":
        print(f"fashion-lit {__version__}")
        sys.exit(0)
    if command not in COMMANDS:
        commands = ", ".join(COMMANDS)
        print(
            f"fashion-lit: Expected one of the commands {commands}, but got {command!r}; "
            "see fashion-lit --help.",
            file=sys.stderr,
        )
        sys.exit(2)
    try:
        module = import_module(f"fashion_lit.commands.{command.replace('-', '_')}")
    except KeyboardInterrupt:  # torch takes seconds to import
        sys.exit(130)
    sys.exit(module.main(arguments))


class Output:
    """Standard output or error whose reader may end before the command does, as with `| head`.

    Text that cannot be written is discarded, and the command continues.

    Args:
        stream: the stream to write to.
    """

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        """Write text, or discard it."""
        try:
            return self.stream.write(text)
        except OSError:
            self._discard()
            return len(text)

    def flush(self) -> None:
        """Flush the stream, or discard its buffer."""
        try:
            self.stream.flush()
        except OSError:
            self._discard()

    def _discard(self) -> None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), self.stream.fileno())


def make_output_robust() -> None:
    """Keep closed pipes and characters that the terminal cannot encode from ending a command."""
    for name in ("stdout", "stderr"):
        stream: Any = getattr(sys, name)
        if stream is None:  # it was closed before the command began
            stream = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115
        stream.reconfigure(errors="replace")
        setattr(sys, name, Output(stream))


def usage() -> str:
    """Return the help text: the commands with their descriptions, and examples."""
    commands = "\n".join(f"  {name:<12} {text}" for name, text in COMMANDS.items())
    return f"""Train and sweep image classifiers.

usage: fashion-lit COMMAND [arguments]

commands:
{commands}

examples:
  fashion-lit train                           train with the default settings
  fashion-lit train experiment=report_b       use a recipe in conf/experiment/
  fashion-lit train data=synthetic            use synthetic images, no download
  fashion-lit train --cfg job                 print the whole configuration
  fashion-lit train -m optimizer.lr=0.1,0.2   run once for each value
  fashion-lit find-lr model=report_cnn        suggest a learning rate
  fashion-lit search space=lr_batch_size      let Optuna choose the values
  fashion-lit evaluate runs/NAME              evaluate a run into runs/NAME/report/
  fashion-lit leaderboard sweeps/NAME         rank its runs, best first
"""


if __name__ == "__main__":
    main()
