"""`fashion-lit evaluate`: the files it writes, the input it refuses; it never changes the run."""

import html
import json
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.image import imread
from sklearn.metrics import f1_score, log_loss

from fashion_lit.commands.evaluate import main
from fashion_lit.config.compose import compose_jobs
from fashion_lit.config.overrides import prepare_overrides
from fashion_lit.config.schema import check
from fashion_lit.config.settings import leaves
from fashion_lit.data.geometry import apply_view, tta_views
from fashion_lit.data.sources.fashion_mnist import CLASS_NAMES
from fashion_lit.evaluation.calibration import apply_temperature, fit_temperature
from fashion_lit.evaluation.predictions import ensemble
from fashion_lit.evaluation.scores import score
from fashion_lit.runs.directory import RunDirectory
from fashion_lit.training.inference import predict
from fashion_lit.training.loading import load_run

FILES = {
    "classification_report.csv",
    "classification_report.txt",
    "confusion_matrix.png",
    "coverage.png",
    "curves.png",
    "metrics.json",
    "mistakes.png",
    "predictions.png",
    "reliability.png",
    "report.html",
}


def contents(run: RunDirectory) -> dict[str, bytes]:
    files = [p for p in run.path.rglob("*") if p.is_file() and "report" not in p.parts]
    return {path.relative_to(run.path).as_posix(): path.read_bytes() for path in files}


def text_of_page(report: Path) -> str:
    """Return report.html with plain instead of non-breaking spaces."""
    page = (report / "report.html").read_text(encoding="utf-8")
    return page.replace("\N{NO-BREAK SPACE}", " ")


@pytest.fixture(scope="module")
def evaluated(finished_run: RunDirectory, tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """Return a copy of a finished run with its evaluation."""
    run = RunDirectory(tmp_path_factory.mktemp("evaluated") / "run")
    shutil.copytree(finished_run.path, run.path)
    before = contents(run)
    assert main([str(run.path)]) == 0
    assert contents(run) == before  # the run's own files are unchanged
    return run


def test_an_evaluation_repeats_the_runs_own_metrics(evaluated: RunDirectory) -> None:
    report = evaluated.path / "report"
    assert {path.name for path in report.iterdir()} == FILES
    metrics, own = json.loads((report / "metrics.json").read_text()), evaluated.metrics
    shared = [key for key in own if key in metrics]
    assert {"val/accuracy", "test/accuracy", "test/f1/Shirt"} <= set(shared)
    for key in shared:
        assert metrics[key] == pytest.approx(own[key], abs=1e-6), key


def test_metrics_match_scikit_learn_on_the_probabilities(evaluated: RunDirectory) -> None:
    predictions = predict(load_run(evaluated.path), "test")
    metrics = json.loads((evaluated.path / "report" / "metrics.json").read_text())
    labels, probabilities = predictions.labels, predictions.probabilities.double()
    assert len(labels) == 101
    macro = f1_score(labels, predictions.predicted, labels=range(10), average="macro")
    assert metrics["test/macro_f1"] == pytest.approx(macro)
    exact = probabilities / probabilities.sum(1, keepdim=True)
    assert metrics["test/log_loss"] == pytest.approx(log_loss(labels, exact, labels=range(10)))
    table = pd.read_csv(evaluated.path / "report" / "classification_report.csv", index_col="class")
    expected = f1_score(labels, predictions.predicted, labels=range(10), average=None)
    np.testing.assert_allclose(table["f1"].iloc[:10], expected)
    assert list(table.index[:10]) == list(CLASS_NAMES)


def test_the_temperature_is_fitted_on_validation_images(
    run_copy: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    val, test = (predict(load_run(run_copy.path), split) for split in ("val", "test"))
    temperature = fit_temperature(val.probabilities, val.labels)
    after = score(apply_temperature(test.probabilities, temperature), test.labels, CLASS_NAMES)
    for arguments, split in (
        ((), "test"),
        (("--split", "test"), "test"),
        (("--split", "val"), "val"),
    ):
        capsys.readouterr()
        assert main([str(run_copy.path), *arguments]) == 0
        report = run_copy.path / "report"
        metrics = json.loads((report / "metrics.json").read_text())
        assert metrics["temperature"] == pytest.approx(temperature)
        sentence = f"temperature of {temperature:.2f}"
        assert sentence in capsys.readouterr().out
        page = text_of_page(report)
        assert sentence in page
        assert ("on the images it was fitted on" in page) == (split == "val")
        if split == "test":
            assert metrics["test/calibrated_log_loss"] == pytest.approx(after.log_loss)
            error = metrics["test/calibrated_calibration_error"]
            assert error == pytest.approx(after.calibration_error)
        else:
            assert metrics["val/calibrated_log_loss"] <= metrics["val/log_loss"]


def test_no_temperature_is_fitted_on_test_images(
    train: Callable[..., RunDirectory], capsys: pytest.CaptureFixture[str]
) -> None:
    run = train("data.validate_on_test=true", "model.network.widths=[8,16,32]")
    capsys.readouterr()
    for split in ("val", "test"):
        assert main([str(run.path), "--split", split]) == 0
        message = "No temperature is fitted, because the validation images are the test images."
        assert message in capsys.readouterr().out
        assert message in text_of_page(run.path / "report")
        assert "temperature" not in (run.path / "report" / "metrics.json").read_text()


def test_an_ensemble_without_common_validation_images_has_no_temperature(
    finished_run: RunDirectory, train: Callable[..., RunDirectory], tmp_path: Path
) -> None:
    other = train("data.split_seed=1", "model.network.widths=[8,16,32]")
    runs, output = [str(finished_run.path), str(other.path)], tmp_path / "together"
    assert main([*runs, "--split", "test", "--output", str(output)]) == 0
    assert "because the runs have different validation images." in text_of_page(output)


def test_the_page_is_self_contained(evaluated: RunDirectory) -> None:
    page = (evaluated.path / "report" / "report.html").read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") == sum(name.endswith(".png") for name in FILES)
    assert not re.findall(r"(?:src|href)=\"(?!data:)", page)
    assert "prefers-color-scheme: dark" in page
    assert "width=device-width" in page
    assert "Test accuracy is" in page
    assert "they include label smoothing of 0.1" in text_of_page(evaluated.path / "report")
    assert "report A" not in page  # synthetic images are not comparable
    for name in ("curves", "mistakes", "predictions", "confusion_matrix"):
        assert imread(evaluated.path / "report" / f"{name}.png").std() > 0.01


def test_the_page_names_the_runs_commands_and_facts(evaluated: RunDirectory) -> None:
    page = text_of_page(evaluated.path / "report")
    train_command, evaluate_command = (
        shlex.split(html.unescape(text)) for text in re.findall(r"<code>(.*?)</code>", page)
    )
    assert train_command[:2] == ["fashion-lit", "train"]
    (composed,) = compose_jobs(prepare_overrides(train_command[2:]), multirun=False)
    assert leaves(check(composed)).items() >= leaves(evaluated.config).items()
    assert evaluate_command == ["fashion-lit", "evaluate", str(evaluated.path)]
    facts = dict(re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", page))
    assert facts.keys() >= {"Started", "Training", "Hardware", "Software", "Data", "Command"}
    assert facts["Training"].startswith("2 epochs in ")
    assert "1 thread" in facts["Hardware"]
    assert facts["Data"] == (
        "synthetic garments: 200 images to train on, 100 to validate, 101 to test"
    )


def test_changed_settings_come_first_and_the_others_are_folded(evaluated: RunDirectory) -> None:
    page = (evaluated.path / "report" / "report.html").read_text(encoding="utf-8")
    settings = page.partition("<h2>Settings</h2>")[2]
    first, _, folded = settings.partition("<details>")
    changed = re.findall(r"<tr><td>(.*?)</td><td>(.*?)</td><td>(.*?)</td></tr>", first)
    assert ("data.name", "synthetic", "fashion_mnist") in changed
    assert ("trainer.max_epochs", "2", "14") in changed
    assert ("data.num_train", "300", "absent") in changed
    others = re.findall(r"<tr><td>(.*?)</td><td>(.*?)</td></tr>", folded)
    assert ("optimizer.momentum", "0.9") in others
    names = [name for name, *_ in (*changed, *others)]
    assert sorted(names) == sorted(leaves(evaluated.config))


def test_the_page_fits_a_phone(evaluated: RunDirectory) -> None:
    page = (evaluated.path / "report" / "report.html").read_text(encoding="utf-8")
    (first_column,) = re.findall(r"th:first-child, td:first-child \{(.*?)\}", page)
    assert {"position: sticky", "left: 0", "background: var(--card)"} <= {
        rule.strip() for rule in first_column.split(";")
    }
    num_tables, num_wrapped = page.count("<table"), page.count('<table class="settings">')
    assert page.count('<div class="scroll"><table') == num_tables - num_wrapped > 0
    text = re.sub(r"<style>.*?</style>|<code>.*?</code>|<td>.*?</td>|<[^>]*>", "", page, flags=re.S)
    assert "95\N{NO-BREAK SPACE}%" in text
    assert not re.search(r"\d %", text)


def test_an_ensemble_averages_its_members_probabilities(
    finished_run: RunDirectory, train: Callable[..., RunDirectory], tmp_path: Path
) -> None:
    alone = predict(load_run(finished_run.path), "val")
    assert torch.equal(ensemble([alone]).probabilities, alone.probabilities)

    runs = [train(f"seed={seed}", "model.network.widths=[8,16,32]") for seed in range(3)]
    output = tmp_path / "together"
    assert main([*(str(run.path) for run in runs), "--output", str(output), "--tta"]) == 0
    members = [predict(load_run(run.path), "test").probabilities.numpy() for run in runs]
    mean = np.mean(members, axis=0)
    labels = predict(load_run(runs[0].path), "test").labels
    metrics = json.loads((output / "metrics.json").read_text())
    assert metrics["test/accuracy"] == pytest.approx(
        float((mean.argmax(1) == labels.numpy()).mean())
    )
    for run in runs:
        accuracy = metrics[f"{run.path.name}/test/accuracy"]
        assert accuracy == pytest.approx(run.metrics["test/accuracy"])
    assert "ensemble, views/test/accuracy" in metrics
    val = ensemble([predict(load_run(run.path), "val") for run in runs])
    assert metrics["temperature"] == pytest.approx(fit_temperature(val.probabilities, val.labels))
    assert not (output / "curves.png").exists()


def test_views_are_mirrored_and_shifted() -> None:
    images = torch.zeros(2, 28, 28, dtype=torch.uint8)
    images[:, 5, 9] = 200
    assert apply_view(images, False, 0, 0) is images
    assert apply_view(images, False, 1, 0)[:, 6, 9].tolist() == [200, 200]
    assert apply_view(images, True, 0, -1)[:, 5, 28 - 1 - 9 - 1].tolist() == [200, 200]


def test_views_are_mirrored_only_if_training_images_were() -> None:
    def mirrors(flip: float) -> set[bool]:
        return {mirrored for mirrored, _, _ in tta_views(mirrored=flip > 0)}

    assert mirrors(0.0) == {False}
    assert mirrors(0.5) == {False, True}
    assert tta_views(mirrored=False)[0] == (False, 0, 0)


def test_the_test_set_stays_closed_unless_requested(
    train: Callable[..., RunDirectory], capsys: pytest.CaptureFixture[str]
) -> None:
    run = train("test=false", "model.network.widths=[8,16,32]")
    capsys.readouterr()
    assert main([str(run.path)]) == 0
    assert "The test set stays closed" in capsys.readouterr().out
    metrics = json.loads((run.path / "report" / "metrics.json").read_text())
    assert not [key for key in metrics if "test/" in key]
    assert main([str(run.path), "--split", "test"]) == 0
    metrics = json.loads((run.path / "report" / "metrics.json").read_text())
    assert not [key for key in metrics if "val/" in key]


def test_an_unfinished_run_is_evaluated_on_its_last_checkpoint(
    finished_run: RunDirectory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = RunDirectory(tmp_path / "stopped")
    shutil.copytree(finished_run.path, run.path)
    run.write_status("interrupted")
    assert main([str(run.path), "--split", "val"]) == 0
    message = "The run is interrupted; last.ckpt has 2 of 2 epochs."
    assert message in capsys.readouterr().out
    assert message in text_of_page(run.path / "report")


def test_bad_input_ends_in_one_sentence(
    finished_run: RunDirectory,
    train: Callable[..., RunDirectory],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    other = train("data.split_seed=1", "model.network.widths=[8,16,32]")
    empty = RunDirectory(tmp_path / "empty")
    empty.path.mkdir()
    empty.create(finished_run.config)
    empty.write_status("running")
    first, second = str(finished_run.path), str(other.path)
    foreign = str(other.best_checkpoint)
    cases = {
        ("absent",): "Expected the directory of a run, but there is no absent.",
        (str(empty.path),): "but there is none yet.",
        (first, "--checkpoint", "absent.ckpt"): "there is no file absent.ckpt",
        (first, "--checkpoint", foreign): "Expected a checkpoint of the run's model",
        (first, first): "one of the directories was given twice",
        (first, second, "--split", "val"): "Expected runs on the same images",
        (first, "--compare"): "Expected two runs or more",
        (first, second, "--checkpoint", foreign): "Expected one run with a --checkpoint FILE",
    }
    capsys.readouterr()
    for arguments, message in cases.items():
        assert main(list(arguments)) == 2
        error = capsys.readouterr().err
        assert message in error
        assert len(error.splitlines()) == 1


def test_two_runs_are_compared_image_by_image(
    finished_run: RunDirectory,
    train: Callable[..., RunDirectory],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    other = train("model.network.widths=[8,16,32]", "seed=3")
    paths = [str(finished_run.path), str(other.path)]
    capsys.readouterr()
    assert main([*paths, "--compare", "--output", str(tmp_path / "c")]) == 0
    out = capsys.readouterr().out
    one, two = (predict(load_run(run.path), "test").correct for run in (finished_run, other))
    counts = int((one & ~two).sum()), int((two & ~one).sum())
    message = (
        f"{counts[0]} are correct only with {finished_run.path.name} and "
        f"{counts[1]} only with {other.path.name}"
    )
    assert message in out
    assert (tmp_path / "c" / "comparison.txt").read_text() in out


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize(
    ("group", "key", "value"),
    [("data", "device", "cuda"), ("trainer", "accelerator", "cuda"), ("trainer", "devices", 7)],
)
def test_a_run_of_unavailable_devices_is_evaluated_on_the_cpu(
    group: str,
    key: str,
    value: object,
    run_copy: RunDirectory,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = run_copy
    config = run.config
    config["trainer"]["accelerator"] = "cuda" if key == "devices" else "auto"
    config[group][key] = value
    run.write_config(config)
    assert main([str(run.path), "--tta"]) == 0
    captured = capsys.readouterr()
    assert (
        "This machine lacks the run's devices; the run is evaluated on cpu instead." in captured.out
    )
    assert captured.err == ""
    metrics = json.loads((run.path / "report" / "metrics.json").read_text())
    assert metrics["test/accuracy"] == pytest.approx(run.metrics["test/accuracy"])


@pytest.mark.parametrize("view", [(False, 0, 0), (True, 0, 0), (False, 1, -1), (True, 0, 1)])
def test_views_stay_on_the_images_device(view: tuple[bool, int, int]) -> None:
    images = torch.zeros(3, 28, 28, dtype=torch.uint8, device="meta")  # stands for a GPU
    assert apply_view(images, *view).device.type == "meta"


def test_a_folder_of_runs_names_them_and_a_checkpoint_is_that_of_its_run(
    run_copy: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = run_copy.path.parent
    shutil.copytree(run_copy.path, folder / "other")
    assert main([str(folder)]) == 2
    error = capsys.readouterr().err
    assert "holds 2: " in error
    assert str(folder / "other") in error
    assert f"fashion-lit leaderboard {folder}" in error
    assert main([str(folder / "nowhere")]) == 2
    assert "there is no" in capsys.readouterr().err
    assert main([str(run_copy.last_checkpoint), "--split", "val", "--checkpoint", "best"]) == 2
    assert "Expected one checkpoint" in capsys.readouterr().err
    for file in (run_copy.last_checkpoint, run_copy.metrics_file):
        assert main([str(file), "--split", "val"]) == 0
        assert (run_copy.path / "report" / "report.html").exists()
        shutil.rmtree(run_copy.path / "report")
