"""Hydra's grammar and flags, other programs' words, and typos: understood, or answered at once."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from fashion_lit.commands import search
from fashion_lit.commands.train import main
from fashion_lit.config.compose import compose_jobs
from fashion_lit.config.groups import CONF_DIR, choice_files, default_groups, with_config_dirs
from fashion_lit.config.overrides import prepare_overrides
from fashion_lit.config.schema import run_schema
from fashion_lit.config.typed import is_possible
from fashion_lit.runs.directory import RunDirectory

ANSWERED = [
    (["-m", "optimizer.lr=0.1,-1"], "Expected `optimizer.lr` to be greater than 0, but got -1."),
    (["optimizer.lrr=1"], "Unknown setting `optimizer.lrr`; did you mean `optimizer.lr`?"),
    (["--lr", "0.01"], "Unknown flag `--lr`; settings have no dashes: optimizer.lr=0.01."),
    (["--epochs=3"], "Unknown flag `--epochs`; settings have no dashes: trainer.max_epochs=3."),
    (["--batch-size", "64"], "settings have no dashes: data.batch_size=64."),
    (["--multirn", "seed=0,1"], "Unknown flag `--multirn`; did you mean `--multirun`?"),
    (["optimizer=AdamW"], "but got 'AdamW'; did you mean `optimizer=adamw`?"),
    (["scheduler=CosineAnnealingLR"], "did you mean `scheduler=cosine`?"),
    (["optimiser=adam"], "Unknown setting `optimiser`; did you mean `optimizer`?"),
    (["model.dropout=0.3"], "with model=mobilenet_v2 there is `model.network.dropout`."),
    (["model=report_cnn", "model.dropout=0"], "did you mean `model.network.block_dropout` or "
     "`model.network.head_dropouts`?"),
    (["model.freeze_backbone=true"], "it exists with model=resnet18."),
    (["learning_rate=1"], "did you mean `optimizer.lr`?"),
    (["epochs=3"], "did you mean `trainer.max_epochs`?"),
    (["device=cuda"], "did you mean `trainer.accelerator`?"),
    (["num_workers=4"], "there are no worker processes, because the data is in memory."),
    (["early_stopping=3"], "`early_stopping` is a group of settings, not one; set ear"),
    (["optimizer=glob(x*)"], "Expected glob(…) to match one of adam, adamw, sgd, but it"),
    (["optimizer.lr=glob(*)"], "chooses among the files of a group, as in optimizer=glob(*)."),
    (["-m", "optimizer.lr=interval(0,1)"], "fashion-lit search 'optimizer.lr=interval(0,1)'."),
    (["-m", "optimizer=interval(0,1)"], "or several as in optimizer=a,b, but got a range."),
    (["sweep=seeds,optimizers"], "Expected one `sweep`, but got sweep=seeds,optimizers; type one "),
    (["+sweep=seeds", "sweep=optimizers"], "Expected one `sweep`"),
    (["space=adamw"], "which only fashion-lit search uses; run fashion-lit search space=adamw."),
    (["-m", "seed=range(0)"], "Expected `seed=range(0)` to give 1 to 10,000 values, but it"),
    (["-m", "seed=range(100000000)"], "but it gives 100,000,000."),
    (["-m", "seed=range(200)", "trainer.max_epochs=range(1,101)"], "10,000 jobs, but these values "
     "give 20,000."),
    (["~run_dir"], "would remove a setting that every run has; give it a value by run_dir=VALUE."),
    (["~early_stopping"], "give its settings other values: early_stopping.patience."),
    (["~optimizer"], "choose another by optimizer=NAME."),
    (["--cfg", "job", "-m", "seed=0,1"], "`--cfg` shows one configuration; leave out -m"),
    (["sweep=seeds", "--help"], "`--help` shows one configuration"),
    (["--cfg", "jobs"], "Expected `--cfg` to be one of 'job', 'hydra', 'all', but got 'jobs'; d"),
    (["--resolve"], "`--resolve` only changes what --cfg prints; add --cfg job."),
    (["--package", "optimizer"], "`--package` only changes what --cfg prints; add --cfg job."),
    (["--cfg", "job", "optimizer.lrr=1"], "did you mean `optimizer.lr`?"),
    (["--shell-completion", "install=bash"], "`--shell-completion` has no effect; use"),
    (["--config-name", "mine"], "`--config-name` has no effect; use experiment=NAME"),
    (["--config-path=mine"], "`--config-path` has no effect; use --config-dir DIR."),
    (["--experimental-rerun", "x"], "has no effect; use run_dir=DIR, which resumes a run"),
    (["hydra.mode=MULTIRUN"], "`hydra.mode` has no effect, because Hydra only composes the config"),
    (["hydra.run.dir=x", "run_dir=y"], "use run_dir=DIR."),
    (["-m", "seed=1,2", "hydra.sweep.dir=x"], "use sweep_name=NAME and output_root=DIR"),
    (["hydra.job.chdir=true"], "`hydra.job.chdir` has no effect"),
    (["augment=none", "augment.classes=[Shirt]"], "has no effect, because no kind that it aims is"),
    (["augment.until_epoch=1"], "has no effect, because neither augment.mixup nor augment.cutmix"),
    (["augment.random_erase_fill=black"], "has no effect, because random_erase is off"),
    (["averaging=none", "model.swa_lr_factor=0.5"], "`model.swa_lr_factor` has no effect, because"),
    (["scheduler=cyclic", "scheduler.num_cycles=1", "scheduler.peak_factor=0.5"], "_cycles is 1"),
    (["optimizer.momentum=0.1"], "has no effect, because scheduler=one_cycle moves it between"),
    (["trainer.overfit_batches=2", "trainer.limit_train_batches=3"], "overfit_batches limits them"),
    (["trainer.gradient_clip_algorithm=norm"], "because trainer.gradient_clip_val sets no limit."),
    (["trainer.min_epochs=2"], "because it delays early_stopping.patience and trainer.max_time"),
    (["model=resnet18", "model.pretrained=false", "model.freeze_backbone=true",
      "model.unfreeze_epoch=99"], "because the run ends before that epoch, counted from 0."),
    (["-m", "seed=0,1", "trainer.min_steps=2"], "`trainer.min_steps` has no effect, because"),
    (["-m", "launcher=local,parallel"], "Expected one value of `launcher` in a multirun"),
    (["-m", "checkpoint.every_minutes=1,2"], "which cannot change a result, so that its values"),
    (["run_dir=a", "output_root=b"], "`output_root` has no effect beside run_dir; leave out one"),
    (["--cfg", "job", "--info"], "Expected one of --cfg and --info, but got both."),
    (["model@x=fast_cnn"], "Expected `model@x` without a package (@…), which has no use here"),
    (["optimizer.name=adam"], "keep the other settings of `optimizer`; choose it by optimize"),
    (["model.network.name=report_cnn"], "choose it by model=report_cnn."),
    (["early_stopping.mode=min"], "`early_stopping` has patience."),
    (["~nonsense"], "Unknown setting `nonsense`"),
    (["=3"], "Expected a setting before the `=`"),
    (["--multirun=3"], "Expected `--multirun` without a value, but got '3'."),
    (["--debug"], "`--debug` has no effect; use debug=one_batch."),
    (["-m", "seed=0,1", "ckpt_path=absent"], "Expected a checkpoint, but there is no file"),
    (["model=resnet18", "data.image_size=32", "model.weights=absent.pth"], "absent.pth cannot be"),
    (["model.network={}"], "`model.network={}` sets nothing; set model.network.name or model.netw"),
    (["-m", "seed=0,1", "sweep_name=a,b"], "Expected one `sweep_name`, but got several"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "message"), ANSWERED, ids=[" ".join(a) for a, _ in ANSWERED])
def test_what_cannot_be_is_answered_in_one_sentence(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("fashion-lit train: ")
    assert message in error
    assert error.count("\n") == 1
    assert "Error executing job" not in error
    assert not list(tmp_path.iterdir())


def refused_without_torch(*arguments: str) -> str:
    """Return the error of a command that is refused, and does not import torch before.

    The machine has no driver of a GPU for it.
    """
    code = (
        "import sys; from fashion_lit.config import trainer; trainer.may_have_gpu = lambda: False; "
        "from fashion_lit.commands.train import main; assert main(sys.argv[1:]) == 2; "
        "assert not {'torch', 'lightning'} & sys.modules.keys()"
    )
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stderr


def test_a_typo_is_refused_before_torch_is_imported() -> None:
    assert "did you mean `optimizer.lr`?" in refused_without_torch("optimizer.lrr=1")


@pytest.mark.parametrize("setting", ["trainer.accelerator=gpu", "data.device=cuda"])
def test_a_gpu_is_refused_before_torch_is_imported_where_there_is_none(setting: str) -> None:
    assert f"Expected a GPU for {setting}, but this" in refused_without_torch(setting)
    assert f"Expected a GPU for {setting}, but" in refused_without_torch("-m", "seed=0,1", setting)


def test_a_locked_run_is_refused_before_torch_is_imported(run_copy: RunDirectory) -> None:
    with run_copy.lock():
        error = refused_without_torch(f"run_dir={run_copy.path.as_posix()}")
    assert "Expected an unlocked run directory, but process " in error


@pytest.mark.parametrize(
    "choice",
    [
        f"{group}={name}"
        for group in sorted(default_groups() - {"experiment", "debug", "launcher"})
        for name in choice_files(group, [CONF_DIR])
        if (group, name) != ("data", "own")  # which needs a class
    ],
)
def test_no_valid_setting_is_refused_before_torch_is_imported(choice: str) -> None:
    (config,) = compose_jobs(prepare_overrides([choice]), multirun=False)
    fields = dict(run_schema(config).model_fields)
    for group in ("data", "model", "optimizer", "scheduler", "augment", "trainer"):
        schema = fields[group].annotation
        assert schema is not None
        for name in schema.model_fields:
            assert is_possible(f"{group}.{name}", [], config), name


def test_flags_may_stand_anywhere(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["optimizer.lr=3", "--cfg", "job", "seed=5", "--resolve"]) == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert (shown["optimizer"]["lr"], shown["seed"]) == (3, 5)


def test_glob_and_plus_choose_among_the_choices() -> None:
    jobs = compose_jobs(prepare_overrides(["optimizer=glob(adam*)"]), multirun=True)
    assert [job["optimizer"]["name"] for job in jobs] == ["adam", "adamw"]
    jobs = compose_jobs(prepare_overrides(["+sweep=seeds"]), multirun=True)
    assert [job["seed"] for job in jobs] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("typed", ["007", "true", "1e3", "grün", "12", "a b", "a=b"])
def test_a_name_is_used_as_typed(typed: str) -> None:
    overrides = prepare_overrides(with_config_dirs([f"sweep_name={typed}"], []))
    (job,) = compose_jobs(overrides, multirun=False)
    assert job["sweep_name"] == typed


def test_null_chooses_nothing_in_a_group_that_has_no_default() -> None:
    jobs = compose_jobs(
        prepare_overrides(["debug=null", "experiment=null,report_b"]), multirun=True
    )
    assert [job["model"]["network"]["name"] for job in jobs] == ["fast_cnn", "report_cnn"]


def test_the_search_of_an_unknown_space_names_its_own_word(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert search.main(["space=lr_batch"]) == 2
    assert "did you mean `space=lr_batch_size`?" in capsys.readouterr().err
