"""Leaderboards, recomputed with pandas from the raw files."""

import json
import re
import shlex
import shutil
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from matplotlib.image import imread
from torch.utils.tensorboard import SummaryWriter

from fashion_lit.commands import leaderboard
from fashion_lit.commands.leaderboard import main, smallest_first
from fashion_lit.errors import UserError
from fashion_lit.runs.directory import RunDirectory, quote_command
from fashion_lit.sweeps.figures import entry_curves
from fashion_lit.sweeps.ranking import rank, read_runs

FOLDERS = ("runs", "sweeps/a", "sweeps/b c")


def write_run(
    sweep: Path, name: str, *, lr: float, batch_size: int = 64, seed: int = 0,
    state: str = "finished", **metrics: float,
) -> RunDirectory:  # fmt: skip
    run = RunDirectory(sweep / name)
    run.path.mkdir(parents=True)
    config: dict[str, Any] = {
        "seed": seed,
        "optimizer": {"lr": lr},
        "data": {"batch_size": batch_size, "val_size": 12000},
        "trainer": {"max_epochs": 4},
    }
    run.config_file.write_text(yaml.safe_dump(config))
    run.write_status(state, progress={"epoch": 2, "step": 20, "seconds": 60.0})  # type: ignore[arg-type]
    if state == "finished":
        recorded = {"val/accuracy": 0.5, "val/loss": 1.0, "seconds": 10.0}
        run.write_metrics(recorded | {k.replace("_", "/", 1): v for k, v in metrics.items()})
    return run


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Return a sweep of six configurations with three seeds each."""
    random = np.random.RandomState(0)
    for i, (lr, batch_size) in enumerate([(lr, b) for lr in (0.1, 0.2, 0.4) for b in (64, 128)]):
        for seed in range(3):
            metrics = {"val_accuracy": 0.9 + 0.01 * i + 0.001 * random.randn()}
            metrics["val_loss"] = float(random.rand())
            name = f"lr={lr},bs={batch_size},seed={seed}-{i:07}{seed}"
            write_run(tmp_path / "s", name, lr=lr, batch_size=batch_size, seed=seed, **metrics)
    return tmp_path / "s"


def raw_frame(sweep: Path) -> pd.DataFrame:
    """Read the raw files, without the package's own code."""
    rows = []
    for file in sweep.glob("*/metrics.json"):
        config = yaml.safe_load((file.parent / "config.yaml").read_text())
        settings = {"lr": config["optimizer"]["lr"], "batch_size": config["data"]["batch_size"]}
        rows.append(json.loads(file.read_text()) | settings)
    return pd.DataFrame(rows)


@pytest.mark.parametrize(("metric", "arguments"), [
    ("val/accuracy", []), ("val/loss", ["--metric", "val/loss"]),
])  # fmt: skip
def test_numbers_match_pandas(metric: str, arguments: list[str], sweep: Path) -> None:
    assert main([str(sweep), *arguments]) == 0
    expected = raw_frame(sweep).groupby(["lr", "batch_size"])[metric].agg(["mean", "std", "count"])
    expected = expected.sort_values("mean", ascending=metric == "val/loss").reset_index()
    found = pd.read_csv(sweep / "leaderboard.csv")
    assert list(found["optimizer.lr"]) == list(expected["lr"])
    assert list(found["data.batch_size"]) == list(expected["batch_size"])
    for ours, theirs in (("mean", "mean"), ("std", "std"), ("n", "count")):
        np.testing.assert_allclose(found[ours], expected[theirs], rtol=1e-12)
    rows = json.loads((sweep / "leaderboard.json").read_text())
    assert [row["rank"] for row in rows] == list(range(1, 7))
    assert len(rows[0]["jobs"]) == 3


def heads(table: str) -> list[str]:
    return [cell.strip() for cell in table.splitlines()[0].strip("| ").split("|")]


def test_table_has_only_the_settings_that_differ_and_columns_that_say_something(
    sweep: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(sweep)]) == 0
    table, written = capsys.readouterr().out.rsplit("\n\n", 1)
    assert heads(table) == [
        "#", "optimizer.lr", "data.batch_size", "val/accuracy", "std", "n", "seconds"
    ]  # fmt: skip
    assert (sweep / "leaderboard.md").read_text() == table + "\n"
    folder, _, files = written.removeprefix("Written to ").strip().partition(": ")
    assert folder == str(sweep)
    new = {path.name for path in sweep.iterdir() if path.is_file()}
    assert set(files.split(", ")) == new
    assert len(new) == 6
    write_run(sweep, "lr=9-aaaaaaaa", lr=9.0, state="interrupted")
    assert main([str(sweep)]) == 0
    assert heads(capsys.readouterr().out)[-1] == "state"


def write_diverse_runs(folder: Path, num_runs: int) -> None:
    """Write single runs that differ in 26 settings of all types, with names of all kinds."""
    random = np.random.RandomState(0)
    names = [
        "2026-11-22_14-03-07-{:06}_fast_cnn",
        "日本 run {}",
        "_a$b_$x^{{{}",
        "long" * 20 + "{}",
    ]
    for i in range(num_runs):
        name = names[i % len(names)].format(i)
        run = write_run(folder, name, lr=10.0**-i, val_accuracy=0.9, **{"val_f1/Bag": 0.5})
        more: dict[str, Any] = {
            "class_weights": None if i % 2 else random.rand(10).tolist(),
            "weights": f"/a/{'long/' * 30}{i}.pth" if i % 3 else None,
            "odd": [True, 1.5, "$x^2$", None, [1, 2]][i % 5],
            "width": {"name": f"net{i % 3}", "follows": i % 3},
        }
        more |= {f"setting_{k}": int(random.randint(4)) for k in range(20)}
        config = run.config | {"model": more}
        run.config_file.write_text(yaml.safe_dump(config, allow_unicode=True), encoding="utf-8")
        with SummaryWriter(str(run.path)) as writer:
            for step in range(3):
                writer.add_scalar("val/accuracy", 0.3 * step, step)


def test_single_runs_have_names_and_as_many_settings_as_fit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_diverse_runs(tmp_path, 12)
    for width, least in ((100, 1), (200, 4)):
        monkeypatch.setenv("COLUMNS", str(width))
        assert main([str(tmp_path)]) == 0
        out = capsys.readouterr().out
        table = out[: out.index("\n\n")]
        assert max(map(len, table.splitlines())) <= width
        settings = heads(table)[2:-2]
        assert len(settings) >= least
        assert settings[0] == "optimizer.lr"  # each run has its own
        assert f"Left out: {26 - len(settings)} of 26 settings that differ" in out
        assert out.count("2026-11-22_14-03-07-000000_fast_cnn") == 1
    document = (tmp_path / "leaderboard.md").read_text(encoding="utf-8")
    assert "Left out: 18 of 26" in document
    columns = pd.read_csv(tmp_path / "leaderboard.csv").columns
    settings = [name for name in columns if "." in name]
    assert len(settings) == 26
    assert settings[-1] == "model.width.follows"  # from model.width.name


def test_figures_of_many_settings_are_of_a_readable_size(
    tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    write_diverse_runs(tmp_path / "runs", 12)
    for i in range(90):
        run = write_run(tmp_path / "pairs", f"a{i}", lr=0.5 ** (i % 9), val_accuracy=i / 100)
        config = run.config | {"model": {"weights": f"$x{'y' * 99}{i // 3}"}}
        run.config_file.write_text(yaml.safe_dump(config))
    for name, figure in (("runs", "learning_curves"), ("pairs", "heat_map")):
        assert main([str(tmp_path / name)]) == 0
        for file in (f"{figure}.png", "main_effects.png", "time.png"):
            height, width, _ = imread(tmp_path / name / file).shape
            assert max(height, width) <= 1920
    assert not [str(warning.message) for warning in recwarn]


def test_figures_are_drawn(sweep: Path) -> None:
    assert main([str(sweep)]) == 0
    for name in ("heat_map", "main_effects", "time"):
        image = imread(sweep / f"{name}.png")
        assert image.shape[0] > 100
        assert image.std() > 0.01


def test_curves_of_the_best_match_tensorboard(tmp_path: Path) -> None:
    for i in range(7):
        run = write_run(tmp_path, f"a{i}", lr=0.1 * (i + 1), val_accuracy=0.9 + i / 100)
        with SummaryWriter(str(run.path)) as writer:
            for epoch in range(1, 5):
                writer.add_scalar("val/accuracy", 0.1 * epoch + i / 100, 10 * epoch - 1)
    best = rank(read_runs(tmp_path), "val/accuracy")[0]
    (points,) = entry_curves(best, "val/accuracy")
    np.testing.assert_allclose(points, [(e, 0.1 * e + 0.06) for e in range(1, 5)], rtol=1e-6)
    assert main([str(tmp_path)]) == 0
    assert imread(tmp_path / "learning_curves.png").std() > 0.01


def test_settings_whose_values_do_not_recur_get_a_scatter_plot(tmp_path: Path) -> None:
    for i in range(4):
        write_run(tmp_path, f"a{i}", lr=0.1 * (i + 1), batch_size=64 + i // 2, val_accuracy=i / 9)
    assert main([str(tmp_path)]) == 0
    assert imread(tmp_path / "scatter.png").std() > 0.01
    assert not (tmp_path / "heat_map.png").exists()
    for i in range(4):
        write_run(tmp_path, f"b{i}", lr=0.1 * (i + 1), batch_size=65 - i // 2, val_accuracy=i / 9)
    assert main([str(tmp_path)]) == 0
    assert (tmp_path / "heat_map.png").exists()
    assert not (tmp_path / "scatter.png").exists()


def test_runs_that_validate_on_different_images_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b"):
        write_run(tmp_path, name, lr=0.1 + len(name))
    assert main([str(tmp_path)]) == 0
    assert "on different images" not in capsys.readouterr().out
    file = write_run(tmp_path, "c", lr=0.3).config_file
    file.write_text(file.read_text().replace("val_size: 12000", "val_size: 6000"))
    assert main([str(tmp_path)]) == 0
    assert "validate on different images (data.val_size)" in capsys.readouterr().out


def test_entries_within_noise_of_the_best_are_marked(tmp_path: Path) -> None:
    one_seed = tmp_path / "one"
    for i, accuracy in enumerate((0.94, 0.939, 0.92)):  # binomial error of the difference: 0.0031
        write_run(one_seed, f"a{i}", lr=0.1 * (i + 1), val_accuracy=accuracy)
    near = [e.near_best for e in rank(read_runs(one_seed), "val/accuracy")]
    assert near == [False, True, False]
    paired = tmp_path / "paired"  # three seeds agree on a small difference, so it is significant
    for seed, base in enumerate((0.93, 0.94, 0.95)):
        write_run(paired, f"a{seed}", lr=0.1, seed=seed, val_accuracy=base)
        write_run(paired, f"b{seed}", lr=0.2, seed=seed, val_accuracy=base - 0.001 - seed * 1e-5)
    near = [e.near_best for e in rank(read_runs(paired), "val/accuracy")]
    assert near == [False, False]


def test_unfinished_damaged_and_foreign_directories_are_reported(
    sweep: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(sweep, "stopped", lr=0.8, state="interrupted")
    write_run(sweep, "dead", lr=1.6, state="running")
    running = write_run(sweep, "alive", lr=3.2, state="running")
    failed = write_run(sweep, "broken", lr=6.4, state="running")
    failed.write_status("failed", reason="Out of GPU memory")
    (sweep / "foreign").mkdir()
    (sweep / "half").mkdir()
    (sweep / "half" / "config.yaml").write_text("a: [")
    no_metrics = write_run(sweep, "no metrics", lr=9.9)
    no_metrics.metrics_file.write_text("{")
    with running.lock():
        assert main([str(sweep)]) == 0
    out = capsys.readouterr().out
    assert "interrupted (2 of 4 epochs)" in out
    assert "killed (2 of 4 epochs" in out
    assert "running (2 of 4 epochs, 1.0 min left)" in out
    assert "failed (2 of 4 epochs; Out of GPU memory)" in out
    not_ranked = out[out.index("Not ranked:") :]
    assert "- foreign: no config.yaml" in not_ranked
    assert "- half: Expected the settings of a run in" in not_ranked
    assert "- no metrics: Expected JSON in" in not_ranked
    ranks = pd.read_csv(sweep / "leaderboard.csv")["rank"]
    assert list(ranks.dropna()) == list(range(1, 7))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["absent"], "but there is no absent."),
        (["s", "--metric", "val/acuracy"], "got 'val/acuracy'; they record seconds, val/accuracy"),
        (["s", "--metric", "val/acuracy"], "val/loss; did you mean `val/accuracy`?"),
        (["f1", "--metric", "f1/Bags"], "val/f1/CLASS, where CLASS is Bag, Shirt; did you mean `v"),
        (["f1/a"], "f1/a is one run; type fashion-lit evaluate "),
        (["s", "--metric", "test/accuracy"], "open the test set once, for the best run"),
        (["s", "--watch", "1", "--evaluate-best"], "`--watch` never ends"),
        (["s", "--watch", "-1"], "Expected `--watch` to be a number above 0, but got '-1'."),
        (["s", "--watch", "nan"], "Expected `--watch` to be a number above 0, but got 'nan'."),
        (["s", "--metric", "val/loss", "--max"], "Expected no --max with --metric val/loss, of"),
        (["s", "--min"], "Expected no --min with --metric val/accuracy, of which more is better."),
        (["empty"], "Expected runs in empty, but none of its directories holds one"),
    ],
)
def test_bad_arguments_end_in_one_sentence(
    arguments: list[str], message: str, sweep: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(sweep.parent)
    Path("empty").mkdir()
    write_run(Path("f1"), "a", lr=0.1, **{"val_f1/Bag": 0.5, "val_f1/Shirt": 0.5})
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1


def test_folders_further_down_are_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("runs", "sweeps/a", "sweeps/b c", "sweeps/.hidden"):
        write_run(tmp_path / name, "run", lr=0.1)
    commands = [quote_command("fashion-lit", "leaderboard", name) for name in FOLDERS]
    for place, expected in ((".", commands), ("sweeps", commands[1:])):
        assert main([place]) == 2
        head, _, listed = capsys.readouterr().err.strip().partition(": Expected runs in ")
        assert head == "fashion-lit leaderboard"
        place_named, _, listed = listed.partition(", but they are further down: ")
        assert place_named == place
        assert sorted(listed.split(", ")) == sorted(expected)
        assert main([str(tmp_path / shlex.split(expected[-1])[-1])]) == 0
        capsys.readouterr()


def test_the_best_of_single_runs_is_tested(
    run_copy: RunDirectory, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = run_copy.path.parent
    shutil.copytree(run_copy.path, folder / "again")  # the same settings and seed
    assert main([str(folder), "--evaluate-best"]) == 0
    record = json.loads((folder / "test_opened.json").read_text())
    assert record["job"] == "again"
    assert record["metrics"]["test/accuracy"] == run_copy.metrics["test/accuracy"]
    assert "again and 1 more" in capfd.readouterr().out


def test_a_watched_leaderboard_is_updated_until_ctrl_c(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path, "first", lr=0.1, val_accuracy=0.91)
    second = write_run(tmp_path, "second", lr=0.2, state="running")
    waits: list[float] = []
    tables: list[str] = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        tables.append(capsys.readouterr().out)
        table = tables[-1].rsplit("\n\n", 1)[0]
        assert (tmp_path / "leaderboard.md").read_text() == table + "\n"
        if len(waits) == 1:
            second.write_metrics({"val/accuracy": 0.93, "seconds": 10.0})
            second.write_status("finished")
        elif len(waits) == 2:
            write_run(tmp_path, "third", lr=0.4, val_accuracy=0.92)
        else:
            raise KeyboardInterrupt

    monkeypatch.setattr(leaderboard, "time", SimpleNamespace(sleep=sleep))
    assert main([str(tmp_path), "--watch", "2.5"]) == 130
    assert waits == [2.5, 2.5, 2.5]
    assert capsys.readouterr() == ("", "")  # nothing after Ctrl-C
    assert [
        re.findall(r"^\| (\d|-) \| \w+ +\| (0\.\d) ", table, re.MULTILINE) for table in tables
    ] == [
        [("1", "0.1"), ("-", "0.2")],
        [("1", "0.2"), ("2", "0.1")],
        [("1", "0.2"), ("2", "0.4"), ("3", "0.1")],
    ]
    rows = json.loads((tmp_path / "leaderboard.json").read_text())
    assert [row["jobs"] for row in rows] == [["second"], ["third"], ["first"]]


def test_names_and_reasons_are_plain_text(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(sweep, "=1+1,<b>", lr=0.7, state="running")
    run.write_status("failed", reason="<script>\x1b[2J\nx")
    assert main([str(sweep)]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "<script" not in out
    assert "<script" not in (sweep / "leaderboard.md").read_text()
    row = next(r for r in pd.read_csv(sweep / "leaderboard.csv")["jobs"] if "1+1" in r)
    assert row.startswith("'=")


def test_a_metric_without_a_known_direction_needs_one() -> None:
    flags = Namespace(min=False, max=False)
    with pytest.raises(UserError, match="Expected --min or --max with --metric best_epoch"):
        smallest_first("best_epoch", flags)
    assert smallest_first("best_epoch", Namespace(min=True, max=False))
    assert smallest_first("val/loss", flags)
    assert not smallest_first("val/f1/Shirt", flags)
