"""The command that resumes a run can be typed as it is printed."""

import os
from pathlib import Path

from fashion_lit.config.settings import resume_command

OWN = {"model": {"network": {"name": "my_nets.MyNet"}}, "optimizer": {"name": "torch.optim.RAdam"}}


def test_resume_command_is_quoted_for_the_shell() -> None:
    assert resume_command(Path("runs/a_b-c"), {}) == "fashion-lit train run_dir=runs/a_b-c"
    posix = """fashion-lit train 'run_dir="my runs/lr=0.1,x"'"""
    windows = r'fashion-lit train "run_dir=\"my runs/lr=0.1,x\""'
    assert resume_command(Path("my runs/lr=0.1,x"), {}) == (windows if os.name == "nt" else posix)


def test_resume_command_trusts_the_packages_of_the_run() -> None:
    command = resume_command(Path("runs/a"), OWN).replace("'", "")
    assert command == "fashion-lit train run_dir=runs/a plugins=[my_nets]"
