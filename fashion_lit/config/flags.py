"""The parser of commands whose arguments are settings; it answers other programs' flags."""

import argparse
import re
from collections.abc import Sequence

from fashion_lit.config.command_line import CommandParser
from fashion_lit.config.explain import suggest
from fashion_lit.config.groups import default_settings
from fashion_lit.errors import UserError
from fashion_lit.text import did_you_mean, shorten

# Hydra's flags that have no effect here, and what to use instead.
OTHER_FLAGS = {
    "--run": "nothing: one run is the default",
    "-r": "nothing: one run is the default",
    "--config-name": "experiment=NAME, which may be a file of your own with --config-dir DIR",
    "-cn": "experiment=NAME, which may be a file of your own with --config-dir DIR",
    "--config-path": "--config-dir DIR",
    "-cp": "--config-dir DIR",
    "--experimental-rerun": "run_dir=DIR, which resumes a run with its settings",
    "--shell-completion": "fashion-lit train --help, which lists all choices",
    "-sc": "fashion-lit train --help, which lists all choices",
    "--hydra-help": "fashion-lit train --help",
    "--version": "fashion-lit --version",
    "--debug": "debug=one_batch",
    "--dry-run": "debug=one_batch, or --cfg job",
    "--verbose": "launcher.verbose=true with -m",
    "-v": "launcher.verbose=true with -m",
    "--workers": "nothing: the data is in memory",
    "--num-workers": "nothing: the data is in memory",
    "--resume": "run_dir=DIR, which resumes the run in it",
}
FLAG = re.compile(r"--?[A-Za-z]")


class SettingsParser(CommandParser):
    """A parser of a command whose arguments are settings, `key=value`, and flags, in any order.

    Args:
        command: name of the command.
        description: text of its help.
    """

    def __init__(self, command: str, description: str | None = None) -> None:
        super().__init__(command, description, add_help=False)
        self.add_argument("-h", "--help", action="store_true", help="show the settings and flags")
        self.add_argument("overrides", nargs="*", metavar="key=value", help="settings")
        self.add_argument(
            "--config-dir", "-cd", action="append", default=[], metavar="DIR",
            help="a directory with own groups and choices, such as DIR/experiment/mine.yaml",
        )  # fmt: skip

    def parse(self, arguments: Sequence[str]) -> argparse.Namespace:
        """Parse a command line; raises UserError for flags that it does not have."""
        for place, text in enumerate(arguments):
            flag, equals, value = text.partition("=")
            if not FLAG.match(flag) or flag in self._option_string_actions:
                continue
            if flag in OTHER_FLAGS:
                raise UserError(f"`{flag}` has no effect; use {OTHER_FLAGS[flag]}.")
            following = arguments[place + 1] if place + 1 < len(arguments) else ""
            if not equals and following and "=" not in following and following[0] != "-":
                value = following
            raise UserError(self._explain(flag, value or "VALUE"))
        return self.parse_intermixed_args(list(arguments))

    def _explain(self, flag: str, value: str) -> str:
        name = flag.lstrip("-").replace("-", "_")
        flags = [flag for flag in self._option_string_actions if flag.startswith("--")]
        settings = default_settings()
        if meant := suggest(name, settings):
            return (
                f"Unknown flag `{shorten(flag)}`; settings have no dashes: "
                f"{' or '.join(f'{setting}={shorten(value)}' for setting in meant)}."
            )
        hint = did_you_mean(flag, flags) or f"; see {self.prog} --help."
        return f"Unknown flag `{shorten(flag)}`{hint}"
