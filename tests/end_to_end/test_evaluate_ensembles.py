"""`fashion-lit evaluate --weights` and `--select`: what they choose, say and refuse."""

import json
import os
import shutil
from pathlib import Path
from typing import Literal

import pytest

from fashion_lit.commands.evaluate import main
from fashion_lit.commands.train import main as train_main
from fashion_lit.data.datamodule import FashionMNISTDataModule
from fashion_lit.data.sources.source import LabelledImages
from fashion_lit.evaluation.calibration import calibrated_log_loss, fit_temperature
from fashion_lit.evaluation.predictions import Predictions, ensemble
from fashion_lit.runs.directory import RunDirectory
from fashion_lit.training.ensembles import fit_weights, select_members
from fashion_lit.training.inference import predict
from fashion_lit.training.loading import load_run


@pytest.fixture(scope="module")
def sweep(small: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a sweep's directory with three finished runs; not to be changed."""
    folder = tmp_path_factory.mktemp("sweeps") / "s"
    for seed, learning_rate in enumerate((0.1, 0.1, 0.001)):
        arguments = [f"seed={seed}", f"optimizer.lr={learning_rate}", "test=false"]
        arguments += ["model.network.widths=[8,16,32]", "trainer.max_epochs=4"]
        arguments += ["model.ema_decay=null", "scheduler=constant"]
        assert (
            train_main([*small, *arguments, f"run_dir={(folder / f'job{seed}').as_posix()}"]) == 0
        )
    return folder


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def runs_of(sweep: Path) -> list[str]:
    return [str(sweep / f"job{seed}") for seed in range(3)]


def validated(sweep: Path) -> list[Predictions]:
    return [predict(load_run(run), "val") for run in runs_of(sweep)]


def page_of(output: Path) -> str:
    text = (output / "report.html").read_text(encoding="utf-8")
    return text.replace("\N{NO-BREAK SPACE}", " ")


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_fitted_weights_are_listed_beside_the_mean(
    sweep: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(sweep)
    assert main([*runs_of(sweep), "--weights", "fit"]) == 0
    assert contents(sweep) == before
    members = validated(sweep)
    weights = fit_weights(members)
    metrics = json.loads((here / "evaluation" / "metrics.json").read_text())
    assert [metrics[f"weight/job{seed}"] for seed in range(3)] == weights
    together = ensemble(members, weights)
    labels, probabilities = together.labels, together.probabilities
    assert metrics["val/accuracy"] == pytest.approx(float(together.correct.double().mean()))
    mean = ensemble(members).probabilities
    assert calibrated_log_loss(probabilities, labels) <= calibrated_log_loss(mean, labels)
    assert metrics["temperature"] == pytest.approx(fit_temperature(probabilities, labels))
    out, page = capsys.readouterr().out, page_of(here / "evaluation")
    sentence = (
        "weighted ensemble minimise its log-loss at its best temperature on the 100 validation"
    )
    for text in (out, page):
        assert sentence in text
        for weight in weights:
            assert text.count(f"{100 * weight:.1f} %") >= 2  # in the sentence and the table


def test_an_ensemble_is_selected_from_a_sweep(
    sweep: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = here / "sweeps" / "s"
    shutil.copytree(sweep, folder)
    for name in ("killed", "lost", "changed"):
        shutil.copytree(sweep / "job0", folder / name)
    RunDirectory(folder / "killed").write_status("interrupted", progress={"epoch": 1, "step": 4})
    RunDirectory(folder / "lost").best_checkpoint.unlink()
    os.truncate(RunDirectory(folder / "changed").best_checkpoint, 1000)
    (folder / "empty").mkdir()
    before = contents(folder)
    assert main([str(folder), "--select", "4", "--tta"]) == 0
    assert contents(folder) == before

    members = validated(sweep)
    counts = select_members(members, 4)
    chosen = [seed for seed in range(3) if counts[seed]]
    assert len(chosen) > 1
    out, page = capsys.readouterr().out, page_of(here / "evaluation")
    for name, reason in {
        "killed": "is interrupted: 1 of 4 epochs",
        "lost": "has lost its best checkpoint",
        "changed": ": Expected a checkpoint, but",
        "empty": "is damaged: no config.yaml",
    }.items():
        assert f"Left out: {folder / name}{' ' * (reason[0] != ':')}{reason}" in out
    assert "Selected from 3 runs:" in out
    for seed in chosen:
        assert f"  {counts[seed]} × {folder / f'job{seed}'}\n" in out
    listed = ", ".join(f"{counts[seed]} × job{seed}" for seed in chosen)
    for text in (out, page):
        assert f"The selected ensemble is {listed}, chosen from 3 runs (Caruana" in text
        assert "its scores on these images are optimistic" in text
    metrics = json.loads((here / "evaluation" / "metrics.json").read_text())
    weights = {key: value for key, value in metrics.items() if key.startswith("weight/")}
    assert weights == {f"weight/job{seed}": counts[seed] / 4 for seed in chosen}
    together = ensemble([members[seed] for seed in chosen], [counts[seed] / 4 for seed in chosen])
    assert metrics["val/accuracy"] == pytest.approx(float(together.correct.double().mean()))
    assert "selected ensemble, views/val/accuracy" in metrics
    assert not [key for key in metrics if "test/" in key]


@pytest.mark.parametrize("flags", [("--weights", "fit"), ("--select", "4")])
def test_test_images_choose_nothing(
    flags: tuple[str, str], sweep: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    members = validated(sweep)
    counts = select_members(members, 4)
    is_fit = "fit" in flags
    weights = fit_weights(members) if is_fit else [count / 4 for count in counts]
    chosen = {f"job{seed}": weight for seed, weight in enumerate(weights) if weight}
    original, opened = FashionMNISTDataModule.images_of, []

    def shuffled(data: FashionMNISTDataModule, split: Literal["val", "test"]) -> LabelledImages:
        images, labels = original(data, split)
        if split == "test":
            opened.append(data)
            labels = labels.roll(1)
        return LabelledImages(images, labels)

    monkeypatch.setattr(FashionMNISTDataModule, "images_of", shuffled)
    assert main([*(runs_of(sweep) if is_fit else [str(sweep)]), *flags, "--split", "test"]) == 0
    metrics = json.loads((here / "evaluation" / "metrics.json").read_text())
    assert {k[7:]: v for k, v in metrics.items() if k.startswith("weight/")} == chosen
    together = ensemble(members, weights)
    expected = fit_temperature(together.probabilities, together.labels)
    assert metrics["temperature"] == pytest.approx(expected)
    assert len(opened) == len(chosen)  # once for each member, and for no other run


def test_bad_input_ends_in_one_sentence(
    sweep: Path, small: list[str], here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, setting in (("leaky", "data.validate_on_test=true"), ("other", "data.split_seed=1")):
        arguments = [*small, setting, "model.network.widths=[8,16,32]", "test=false"]
        assert train_main([*arguments, f"run_dir={name}"]) == 0
    shutil.copytree(here / "leaky", here / "evaluation")
    one, two, _ = runs_of(sweep)
    output = ("--output", "out")
    is_run = "Expected a directory for the evaluation alone, but evaluation is a run's"
    cases = {
        (str(sweep),): f"choose an ensemble by fashion-lit evaluate {sweep} --select 5.",
        (str(sweep), "--select", "0"): "to be a whole number of at least 1, but got '0'",
        (str(sweep), "--select", "2", "--weights", "fit", *output): "exclude each other",
        (str(sweep), one, "--select", "2", "--compare", *output): "exclude each other",
        (str(sweep), "--select", "2", "--checkpoint", "best", *output): "exclude each other",
        (one, two, "--weights", "fit", "--compare", *output): "exclude each other",
        (one, "--select", "2", *output): "Expected two finished runs or more to select from",
        (f"{one}/config.yaml", "--select", "2", *output): "Expected directories of runs or sweeps",
        (str(sweep), "--select", "2"): is_run,
        (one, two, "--weights", "fit"): is_run,
        (one, "--weights", "fit"): "Expected two runs or more with --weights, but got one.",
        (one, two, "--weights", "foo"): "Expected `--weights` to be one of 'fit', but got 'foo'",
        (one, "leaky", "--weights", "fit", *output): "those of leaky are the test images",
        (str(sweep), "leaky", "--select", "2", *output): "those of leaky are the test images",
        (one, "other", "--weights", "fit", "--output", "out2"): "Expected runs on the same images",
        (str(sweep), "other", "--select", "2", "--output", "out2"): "on the same images",
    }
    capsys.readouterr()
    for arguments, message in cases.items():
        assert main(list(arguments)) == 2, arguments
        error = capsys.readouterr().err
        assert message in error
        assert len(error.splitlines()) == 1
    assert not (here / "out").exists()
