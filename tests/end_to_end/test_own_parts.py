"""Users' own parts: the README's section on them, runs that resume, and strangers' runs.

The long version installs a wheel, and kills processes: pytest -m long -s -n 0
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import venv
from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from test_interruptions import stop_at
from test_kills import SETTINGS, assert_same_result, check_kills, curves

import fashion_lit
from fashion_lit import CNNClassifier
from fashion_lit.commands.train import main
from fashion_lit.errors import UserError
from fashion_lit.runs.directory import RunDirectory

Train = Callable[..., RunDirectory]
ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SECTION = README.partition("\n## Your own parts\n")[2].partition("\n## ")[0]
(MODULE,) = re.findall(r"```python\n(.*?)```", SECTION, flags=re.S)
(BLOCK,) = re.findall(r"```bash\n(.*?)```", SECTION, flags=re.S)
LINES = [line.partition("  # ")[0].strip() for line in BLOCK.splitlines()]
TRAINED = [line for line in LINES if line.startswith("fashion-lit train")]
# The same by YAML: {setting: its node} of each line above.
YAML = {
    "my_net.yaml": "name: cnn\nnetwork:\n  name: my_parts.MyNet\nlabel_smoothing: 0.1\n",
    "mine.yaml": "# @package _global_\nplugins: [my_parts]\ndefaults:\n"
    "  - override /optimizer: radam\nmodel:\n  network:\n    name: my_parts.MyNet\n    width: 8\n"
    "scheduler:\n  name: torch.optim.lr_scheduler.CyclicLR\n  base_lr: 1e-4\n  max_lr: 1e-2\n"
    "  interval: step\n  cycle_momentum: false\naugment:\n  own:\n    name: my_parts.Solarize\n",
    "radam.yaml": "name: torch.optim.RAdam\nlr: 1e-3\n",
}
OWN = ["model.network.name=my_parts.MyNet", "model.network.width=8", "plugins=[my_parts]"]
CYCLIC = ["scheduler.name=torch.optim.lr_scheduler.CyclicLR", "scheduler.base_lr=1e-4",
          "scheduler.max_lr=1e-2", "scheduler.interval=step", "scheduler.step_size_up=7",
          "scheduler.cycle_momentum=false"]  # fmt: skip
ALL_OWN = [*OWN, "optimizer.name=torch.optim.RAdam", "augment.own.name=my_parts.Solarize", *CYCLIC]
TRACE = "from pathlib import Path\nPath(__file__).with_name('imported').touch()\n"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The working directory, with the README's my_parts.py, which no other test has imported."""
    (tmp_path / "my_parts.py").write_text(MODULE, encoding="utf-8")
    for folder, name in (("model", "my_net"), ("experiment", "mine"), ("optimizer", "radam")):
        (tmp_path / "mine" / folder).mkdir(parents=True)
        path = tmp_path / "mine" / folder / f"{name}.yaml"
        path.write_text(YAML[path.name], encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    yield tmp_path
    sys.path[:] = before
    sys.modules.pop("my_parts", None)


def disarm(place: Path) -> Callable[[], bool]:
    """Replace my_parts.py by one that leaves a trace; return whether it was imported since."""
    sys.modules.pop("my_parts", None)
    shutil.rmtree(place / "__pycache__", ignore_errors=True)
    (place / "my_parts.py").write_text(TRACE + MODULE, encoding="utf-8")
    return (place / "imported").exists


def run_command(command: str, *arguments: str) -> int:
    """Run a command in this process; returns its exit code."""
    module = import_module(f"fashion_lit.commands.{command.replace('-', '_')}")
    return module.main(list(arguments))


def stopped(
    whole: RunDirectory, settings: list[str], step: int, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """Start a run beside another, and stop it at a step; returns its directory."""
    path = whole.path.with_name("stopped")
    with monkeypatch.context() as patch:
        stop_at(patch, "training_step", step)
        assert main([*settings, f"run_dir={path.as_posix()}"]) == 130
    return path


def small_for(line: str, small: list[str]) -> list[str]:
    """Return the overrides that make a line's run small; those of its own data have no source."""
    is_own_data = "data.source" in line
    return [
        o for o in small if not (is_own_data and o.startswith(("data=", "data.num", "data.val")))
    ]


def test_the_section_is_short() -> None:
    assert SECTION.count("\n") <= 60


def test_every_command_of_the_section_works(place: Path, small: list[str]) -> None:
    assert len(LINES) == 8
    for line in LINES:
        _, command, *arguments = shlex.split(line)
        if command == "train":
            arguments = [*small_for(line, small), "trainer.max_epochs=2", *arguments]
        assert run_command(command, *arguments) == 0, line
    run = RunDirectory(place / "runs" / "mine")
    assert run.config["model"]["network"] == {"name": "my_parts.MyNet", "width": 64}
    assert "plugins" not in run.config
    assert list((place / "runs").glob("*/csv/*/*/metrics.csv"))


def test_ready_callbacks_run_together_and_log(
    train: Train,
    small: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    settings = ["callbacks=[lr_monitor,device_stats,swa]", "trainer.log_every_n_steps=1"]
    settings += ["trainer.max_epochs=3", "scheduler=constant", "averaging=none"]
    whole = train(*settings)
    told = capsys.readouterr().out.partition("callbacks.swa: ")[2]
    assert told.splitlines()[1].startswith("  does not resume exactly: ")
    assert {tag for tag in curves(whole) if tag.startswith("lr-SGD")}
    path = stopped(whole, [*small, *settings], 7, monkeypatch)
    assert main([f"run_dir={path.as_posix()}"]) == 0
    assert RunDirectory(path).status["state"] == "finished"


@pytest.mark.parametrize("package", ["wandb", "mlflow"])
def test_a_logger_that_is_not_installed_says_what_to_install(
    package: str, small: list[str], place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if find_spec(package):
        pytest.skip(f"{package} is installed")
    assert main([*small, f"loggers={package}", "run_dir=own"]) == 2
    assert f"pip install -U '{package}" in capsys.readouterr().err
    assert not (place / "own").exists()


def test_the_csv_logger_has_every_step_once_also_after_a_stop(
    train: Train, small: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ["loggers=csv", "trainer.max_epochs=3", "trainer.log_every_n_steps=1"]
    whole = train(*settings)
    path = stopped(whole, [*small, *settings], 6, monkeypatch)
    assert main([f"run_dir={path.as_posix()}"]) == 0
    files = [sorted(run.glob("csv/*/*/metrics.csv")) for run in (whole.path, path)]
    assert [len(found) for found in files] == [1, 2]  # of each process
    kept = [[row for file in found for row in rows_of(file)] for found in files]
    assert kept[0] == kept[1]
    assert (path / "csv" / "lightning_logs" / "version_0" / "hparams.yaml").exists()


def rows_of(file: Path) -> list[tuple[str, str]]:
    """Return (step, validation accuracy) of the rows that have one."""
    names, *rows = (line.split(",") for line in file.read_text().splitlines())
    step, accuracy = names.index("step"), names.index("val/accuracy")
    return [(row[step], row[accuracy]) for row in rows if row[accuracy]]


def test_own_parts_resume_bit_identically(
    train: Train, small: list[str], place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = [*ALL_OWN, "trainer.max_epochs=3", "checkpoint.every_steps=2", "test=false"]
    whole = train(*settings)
    path = stopped(whole, [*small, *settings], 6, monkeypatch)
    assert main([f"run_dir={path.as_posix()}"]) == 2
    assert main([f"run_dir={path.as_posix()}", "plugins=[my_parts]"]) == 0
    assert_same_result(RunDirectory(path), whole)


def test_own_choices_in_yaml_bring_their_trust(place: Path, small: list[str]) -> None:
    assert main([*small, "--config-dir", "mine", "experiment=mine", "run_dir=own"]) == 0
    config = RunDirectory(place / "own").config
    assert config["optimizer"] == {"name": "torch.optim.RAdam", "lr": 1e-3}
    assert config["scheduler"]["name"] == "torch.optim.lr_scheduler.CyclicLR"
    assert "pct_start" not in config["scheduler"]
    assert main(["run_dir=own"]) == 2


def test_a_sweep_passes_trust_on_to_its_jobs(
    place: Path, small: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    sweep = ["-m", *small, *OWN[:1], "plugins=[my_parts]", "model.network.width=4,8"]
    assert main([*sweep, "sweep_name=own", "launcher=parallel"]) == 0
    runs = fashion_lit.leaderboard(place / "sweeps" / "own")
    assert sorted(runs["model.network.width"]) == [4, 8]
    assert set(runs["state"]) == {"finished"}


STRANGERS = [
    "$(touch x).Net",
    "os.system",
    "subprocess.run",
    "my_parts.os.system",
    "my_parts.MyNet",
]


@pytest.mark.parametrize("path", STRANGERS)
def test_a_strangers_run_imports_and_calls_nothing(
    path: str,
    place: Path,
    small: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    made: list[Any] = []
    run = RunDirectory(place / "sweeps" / "own" / "job")
    assert main([*small, *OWN, "scheduler=constant", f"run_dir={run.path.as_posix()}"]) == 0
    imported = disarm(place)
    forge(run, path)
    capsys.readouterr()
    for name in ("os.system", "subprocess.run", "subprocess.Popen"):
        module, _, function = name.partition(".")
        monkeypatch.setattr(import_module(module), function, lambda *given, **_: made.append(given))
    start = run.path.as_posix()
    commands = (
        ("evaluate", start),
        ("train", f"run_dir={start}"),
        ("train", f"run_dir={start}", "trainer.max_epochs=5"),
        ("train", f"ckpt_path={start}/checkpoints/last.ckpt", "trainer.max_epochs=5"),
        ("train", *small, f"init_from={start}"),
        ("train", *small, f"teacher={start}"),
        ("leaderboard", str(run.path.parent), "--evaluate-best"),
    )
    for command, *arguments in commands:
        assert run_command(command, *arguments) == 2, arguments
        assert path in capsys.readouterr().err, arguments
    for checkpoint in (run.best_checkpoint, run.last_checkpoint):
        with pytest.raises(UserError, match=re.escape(path)):
            CNNClassifier.load_from_checkpoint(checkpoint)
    with pytest.raises(UserError, match=re.escape(path)):
        fashion_lit.load_run(run.path)
    assert not imported()
    assert not made
    assert not (run.path.parent / "test_opened.json").exists()


def forge(run: RunDirectory, path: str) -> None:
    """Name another class in a run's settings and checkpoints, as its maker could have."""
    from fashion_lit.files import with_digest

    config = run.config
    config["model"]["network"]["name"] = path
    run.write_config(config)
    for file in (run.best_checkpoint, run.last_checkpoint):
        checkpoint = torch.load(file, weights_only=True)
        checkpoint["hyper_parameters"]["network"]["name"] = path
        checkpoint["run"]["config"]["model"]["network"]["name"] = path
        torch.save(checkpoint, file)
        file.write_bytes(with_digest(file.read_bytes()))
    status = json.loads(run.status_file.read_text())
    status.pop("files", None)
    status.pop("sha256", None)
    run.status_file.write_text(json.dumps(status))


def test_a_strangers_run_is_used_once_it_is_trusted(place: Path, small: list[str]) -> None:
    assert main([*small, *OWN, "run_dir=own"]) == 0
    imported = disarm(place)
    for wrong in (None, 3, ["a.b"]):
        with pytest.raises(UserError, match="a list of packages"):
            fashion_lit.load_run("own", plugins=wrong)  # type: ignore[arg-type]
    assert not imported()
    run = fashion_lit.load_run("own", plugins="my_parts")
    assert imported()
    assert type(run.classifier.network).__name__ == "MyNet"
    assert len(fashion_lit.predict(run).labels) == 100
    checkpoint = run.checkpoint
    loaded = CNNClassifier.load_from_checkpoint(checkpoint, plugins=["my_parts"])
    assert type(loaded.network).__name__ == "MyNet"


NETWORKS = """
import sys
import torch
from torch import nn

class Plain(nn.Module):
    def __init__(self, num_classes=10):
        super().__init__()
        self.head = nn.Linear(784, num_classes)

    def forward(self, images):
        return self.head(images.flatten(1))

class Extra(Plain):
    def get_extra_state(self):
        return {"seen": 3}

    def set_extra_state(self, state):
        assert state == {"seen": 3}

class Lazy(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Flatten(), nn.LazyLinear(10))

class Frozen(Plain):
    def forward(self, images):
        return super().forward(images).detach()

class Pair(Plain):
    def forward(self, images):
        logits = super().forward(images)
        return logits if self.training else (logits, images)

class Complex(Plain):
    def forward(self, images):
        return super().forward(images).to(torch.complex64)

class Leaving(Plain):
    def __init__(self):
        sys.exit(3)

class Failing(Plain):
    def forward(self, images):
        raise KeyError("no such thing")

class WithoutRate(torch.optim.Optimizer):
    def __init__(self, params):
        super().__init__(params, {"step_size": 1.0})
"""


@pytest.mark.parametrize(
    ("setting", "name", "expected"),
    [
        ("model.network", "Lazy", "has lazy layers"),
        ("model.network", "Frozen", "a network with weights to train"),
        ("model.network", "Pair", "but it returns tuple"),
        ("model.network", "Complex", "they are torch.complex64"),
        ("model.network", "Leaving", "it raised SystemExit: 3"),
        ("model.network", "Failing", "to train on images (2, 1, 28, 28), but it raised KeyError"),
        ("optimizer", "WithoutRate", "an optimizer with a learning rate, `lr`"),
        ("optimizer", "torch.optim.SparseAdam", "to take a step, but it raised RuntimeError"),
        ("optimizer", "torch.optim.LBFGS", "to take a step, but it raised RuntimeError"),
    ],
)
def test_a_part_that_can_never_train_is_refused_before_a_run_is_made(
    setting: str,
    name: str,
    expected: str,
    place: Path,
    small: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    (place / "my_parts.py").write_text(NETWORKS, encoding="utf-8")
    path = name if "." in name else f"my_parts.{name}"
    assert main([*small, f"{setting}.name={path}", "plugins=[my_parts]"]) == 2
    assert expected in capsys.readouterr().err
    assert not (place / "runs").exists()


def test_a_schedule_that_ends_before_the_run_stops_it_before_its_first_step(
    place: Path, small: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    schedule = [
        "scheduler.name=torch.optim.lr_scheduler.OneCycleLR",
        "scheduler.max_lr=0.1",
        "scheduler.interval=step",
        "scheduler.total_steps=3",
    ]
    assert main([*small, "run_dir=short", *schedule]) == 1
    message = capsys.readouterr().err
    assert "to take the 4 steps of this run, but it raised ValueError: Tried to step" in message
    assert "Traceback" not in message
    assert RunDirectory(place / "short").status["step"] == 0


def test_extra_state_of_a_module_is_kept(place: Path, small: list[str]) -> None:
    (place / "my_parts.py").write_text(NETWORKS, encoding="utf-8")
    typed = ["model.network.name=my_parts.Extra", "plugins=[my_parts]", "run_dir=own"]
    assert main([*small, *typed]) == 0
    assert run_command("evaluate", "own", "--plugins", "my_parts", "--split", "val") == 0


CALLBACK = """
import torch
from lightning.pytorch import Callback

class Counting(Callback):
    def __init__(self, *, plain: bool = True):
        self.seen = 0
        self.plain = plain

    def on_train_batch_end(self, trainer, module, outputs, batch, index):
        self.seen += 1

    def state_dict(self):
        return {"seen": self.seen, "other": torch.ones(2) if self.plain else object()}

    def load_state_dict(self, state):
        self.seen = state["seen"]
"""


def test_a_callbacks_state_is_saved_if_it_is_plain(
    train: Train, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "my_parts.py").write_text(CALLBACK, encoding="utf-8")
    settings = ["callbacks.count.name=my_parts.Counting", "plugins=[my_parts]"]
    run = train(*settings, "trainer.max_epochs=2")
    saved = torch.load(run.last_checkpoint, weights_only=True)["callbacks"]
    assert saved["Counting"]["seen"] == run.status["step"]
    assert "callbacks.count: my_parts.Counting()" in capsys.readouterr().out
    with pytest.raises(AssertionError):
        train(*settings, "callbacks.count.plain=false")
    assert "the callback Counting" in capsys.readouterr().err


@pytest.mark.long
def test_own_parts_survive_kills(place: Path) -> None:
    kills = [("step", 5), ("save", 2), ("validation", 2)]
    settings = [o for o in SETTINGS if not o.startswith("augment=")]
    assert check_kills(place, [*settings, *ALL_OWN], kills, ["plugins=[my_parts]"]) == 3


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the Python of an environment in which the package is installed from a wheel."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip"]
    subprocess.run([*pip, "wheel", "-q", "--no-deps", "-w", str(folder), str(ROOT)], check=True)
    (wheel,) = folder.glob("*.whl")
    venv.create(folder / "env", with_pip=False)
    python = folder / "env" / ("Scripts" if os.name == "nt" else "bin") / "python"
    found = subprocess.run(
        [str(python), "-c", "import site; print(site.getsitepackages()[0])"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    site = Path(found.stdout.strip())
    subprocess.run(
        [*pip, "install", "-q", "--no-deps", "--target", str(site), str(wheel)], check=True
    )
    # The dependencies are those of this environment; fashion_lit itself is found before.
    (site / "others.pth").write_text(f"{Path(torch.__file__).parents[1]}\n", encoding="utf-8")
    return python


@pytest.mark.long
@pytest.mark.parametrize("line", TRAINED)
def test_a_wheel_outside_the_checkout_trains_alone_by_yaml_and_in_parallel(
    line: str, installed: Path, place: Path, small: list[str]
) -> None:
    _, _, *typed = shlex.split(line)
    typed = [text for text in typed if not text.startswith("run_dir=")]
    settings = [*small_for(line, small), "test=false"]
    (place / "mine" / "experiment" / "typed.yaml").write_text(as_yaml(typed), encoding="utf-8")
    for number, arguments in enumerate(
        (
            [*settings, *typed, "run_dir=alone"],
            [*settings, "--config-dir", "mine", "experiment=typed", "run_dir=by_yaml"],
            ["-m", *settings, *typed, "seed=0,1", "launcher=parallel", "sweep_name=parallel"],
        )
    ):
        done = subprocess.run(
            [str(installed), "-P", "-m", "fashion_lit", "train", *arguments],
            env={**os.environ, "PYTHONPATH": ""}, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{number} {done.stdout} {done.stderr}"
    one, other = (RunDirectory(place / name) for name in ("alone", "by_yaml"))
    assert one.config == other.config
    assert len(list((place / "sweeps" / "parallel").glob("*/metrics.json"))) == 2


def as_yaml(typed: list[str]) -> str:
    """Return the experiment that sets what was typed."""
    lines = ["# @package _global_"]
    if any(text.startswith("data.source") for text in typed):
        lines += ["defaults:", "  - override /data: own"]
    nodes: dict[str, Any] = {}
    for text in typed:
        key, _, value = text.partition("=")
        node = nodes
        *parents, last = key.split(".")
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = ["my_parts"] if key == "plugins" else value
    return "\n".join([*lines, *yaml_lines(nodes)]) + "\n"


def yaml_lines(node: dict[str, Any], indent: str = "") -> list[str]:
    lines = []
    for key, value in node.items():
        if isinstance(value, dict):
            lines += [f"{indent}{key}:", *yaml_lines(value, f"{indent}  ")]
        else:
            lines.append(f"{indent}{key}: {value if isinstance(value, str) else json.dumps(value)}")
    return lines
