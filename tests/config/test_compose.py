from pathlib import Path

import hydra
import pytest
import yaml
from hydra.core.global_hydra import GlobalHydra

from fashion_lit.commands.train import main
from fashion_lit.config.compose import compose_jobs, hydra_errors_for_users, replaced_settings
from fashion_lit.config.groups import CONF_DIR, SPACES, SWEEP
from fashion_lit.config.overrides import prepare_overrides
from fashion_lit.config.schema import check
from fashion_lit.config.settings import ADDED_SETTINGS, Config, flatten, leaves, network_name
from fashion_lit.config.typed import check_names
from fashion_lit.data.augment import Augment
from fashion_lit.errors import UserError
from fashion_lit.models.build import build_classifier
from fashion_lit.models.distillation import Distillation
from fashion_lit.parts.arguments import keyword_fields
from fashion_lit.parts.trust import trusting
from fashion_lit.training.build import build_datamodule

GROUPS = sorted(path.name for path in CONF_DIR.iterdir() if path.is_dir())
CHOICES = [
    f"{group}={path.stem}"
    for group in GROUPS
    if group not in (SPACES, SWEEP)
    for path in sorted((CONF_DIR / group).glob("*.yaml"))
]

# They need a class of the user's, or a package that is no dependency; see test_own_parts.py.
NOT_HERE = ("data=own", "loggers=wandb", "loggers=mlflow")
AUGMENT_NOTHING = {"augment.flip": 0.0, "augment.shift": 0, "augment.erase": 0}


def compose(*overrides: str) -> Config:
    (job,) = compose_jobs(prepare_overrides(overrides), multirun=False)
    return job


@pytest.mark.parametrize("choice", CHOICES)
def test_every_choice_of_every_group_composes_and_builds(
    choice: str, idx_folder: Path, picture_folder: Path
) -> None:
    roots = {"data=idx": idx_folder, "data=folder": picture_folder}
    more = [f"data.root={roots[choice].as_posix()}", "data.batch_size=8"] if choice in roots else []
    config = compose(choice, *more)
    if choice in NOT_HERE:
        return
    check(config)
    build_classifier(config)
    build_datamodule(config)


def test_every_group_offers_a_choice() -> None:
    assert all(len(list((CONF_DIR / group).glob("*.yaml"))) >= 2 for group in GROUPS)


def test_yaml_stays_short() -> None:
    for path in CONF_DIR.rglob("*.yaml"):
        limit = 60 if path.name == "train.yaml" else 20
        assert len(path.read_text(encoding="utf-8").splitlines()) <= limit, path


def test_every_experiment_opens_with_its_command() -> None:
    for path in (CONF_DIR / "experiment").glob("*.yaml"):
        command = f"# fashion-lit train experiment={path.stem}\n"
        assert command in path.read_text(encoding="utf-8").splitlines(keepends=True)[:3], path


def test_report_b_has_the_course_reports_settings() -> None:
    config = compose("experiment=report_b")
    assert network_name(config) == "report_cnn"
    assert config["model"]["label_smoothing"] == 0.1
    assert config["optimizer"]["name"] == "adamw"
    assert config["optimizer"]["weight_decay"] == 1e-4
    assert config["optimizer"]["lr"] == 0.01  # the maximum of OneCycleLR
    assert config["scheduler"]["name"] == "one_cycle"
    assert config["data"]["batch_size"] == 256
    assert config["data"]["val_size"] == 12000
    assert leaves(config["augment"], "augment.") == AUGMENT_NOTHING
    assert config["trainer"]["max_epochs"] == 20
    assert config["trainer"]["precision"] == "16-mixed"
    assert config["trainer"]["benchmark"] is True


@pytest.mark.parametrize("name", ["report_a", "report_a_as_published"])
def test_report_a_has_the_course_reports_settings(name: str) -> None:
    config = compose(f"experiment={name}")
    assert config["model"]["backbone"] == "resnet18"
    assert config["model"]["pretrained"] is True
    assert config["model"]["reinit_stem"] is True
    assert config["model"]["freeze_backbone"] is False
    assert config["model"]["label_smoothing"] == 0.0
    assert config["optimizer"] | {"betas": None} == {
        "name": "adam", "lr": 1e-3, "betas": None, "weight_decay": 0.0,
        "decay_norms_and_biases": True,
    }  # fmt: skip
    assert config["scheduler"] == {"name": "constant"}
    assert config["data"]["batch_size"] == 64
    assert config["data"]["image_size"] == 224
    assert config["data"]["normalize"] is False
    assert config["data"]["validate_on_test"] is (name == "report_a_as_published")
    assert leaves(config["augment"], "augment.") == AUGMENT_NOTHING
    assert config["trainer"]["max_epochs"] == 20
    assert config["trainer"]["precision"] == "32-true"


def test_command_line_overrides_replace_an_experiments_values() -> None:
    config = compose("experiment=report_b", "optimizer.lr=0.5", "precision=fp32", "model=fast_cnn")
    assert config["optimizer"]["lr"] == 0.5
    assert config["trainer"]["precision"] == "32-true"
    assert network_name(config) == "fast_cnn"


def test_multirun_composes_the_product() -> None:
    overrides = prepare_overrides(["optimizer.lr=0.1,0.2", "data.batch_size=64,128", "seed=3"])
    jobs = compose_jobs(overrides, multirun=True)
    values = [(j["optimizer"]["lr"], j["data"]["batch_size"], j["seed"]) for j in jobs]
    assert values == [(0.1, 64, 3), (0.1, 128, 3), (0.2, 64, 3), (0.2, 128, 3)]


@pytest.mark.parametrize("path", sorted((CONF_DIR / "sweep").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_sweep_composes_and_opens_with_its_command(path: Path) -> None:
    assert path.read_text(encoding="utf-8").startswith(f"# fashion-lit train sweep={path.stem}: ")
    jobs = compose_jobs(prepare_overrides([f"sweep={path.stem}"]), multirun=True)
    assert len(jobs) > 1
    for job in jobs:
        check(job)


def test_overrides_take_precedence_over_a_sweeps_values() -> None:
    overrides = prepare_overrides(["sweep=lr_batch_size", "optimizer.lr=0.3", "seed=1,2"])
    jobs = compose_jobs(overrides, multirun=True)
    assert {job["optimizer"]["lr"] for job in jobs} == {0.3}
    assert len(jobs) == 6


def test_unknown_sweep_names_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"`sweep` to be one of lr_batch_size, .* got 'lr_bs'"):
        prepare_overrides(["sweep=lr_bs"])


def test_run_directory_names_contain_time_and_model() -> None:
    name = Path(compose("model=report_cnn")["run_dir"])
    assert name.parent.name == "runs"
    assert name.name.endswith("_report_cnn")
    assert len(name.name.split("_")[1].split("-")[-1]) == 6  # microseconds


def test_flatten_keeps_numbers_and_drops_paths() -> None:
    flat = flatten(compose())
    assert isinstance(flat["optimizer.lr"], float)
    assert flat["data.batch_size"] == compose()["data"]["batch_size"]
    assert flat["model.class_weights"] == "None"
    assert not {"data.root", "data.mirrors", "run_dir"} & flat.keys()


def test_settings_of_augmentation_that_older_runs_lack_are_off() -> None:
    defaults = {
        f"augment.{k}": v
        for k, (_, v) in keyword_fields(Augment, exclude={"class_names", "own"}).items()
    }
    added = {key: value for key, value in ADDED_SETTINGS.items() if key in defaults}
    assert defaults.keys() - added.keys() == AUGMENT_NOTHING.keys()
    written = compose("augment=none")["augment"]
    assert written.keys() == keyword_fields(Augment, exclude={"class_names", "own"}).keys()
    for key, value in added.items():
        assert value == (list(defaults[key]) if isinstance(value, list) else defaults[key])
        assert value == written[key.removeprefix("augment.")]


def test_older_settings_of_augmentation_are_the_same_as_now() -> None:
    old = {"flip": 0.5, "shift": 1, "erase": 8}
    config = compose("augment=flip_shift_erase")
    assert leaves(config) == leaves(config | {"augment": old})
    assert check(config | {"augment": old})["augment"] == old


def test_settings_of_distillation_are_those_of_the_class_and_of_older_runs() -> None:
    defaults = {f"distillation.{k}": v for k, (_, v) in keyword_fields(Distillation).items()}
    assert defaults.items() <= ADDED_SETTINGS.items()
    config = compose()
    assert {f"distillation.{k}": v for k, v in config["distillation"].items()} == defaults
    older = {k: v for k, v in config.items() if k not in ("teacher", "distillation")}
    assert leaves(check(older)) == leaves(check(config))


def test_teachers_of_a_single_run_are_a_list_of_absolute_paths() -> None:
    expected = [str(Path(name).absolute()) for name in ("a", "b")]
    assert compose("teacher=a,b")["teacher"] == compose("teacher=[a,b]")["teacher"] == expected
    assert compose("teacher=a")["teacher"] == expected[:1]
    assert compose('teacher="~/a"')["teacher"] == [str(Path("~/a").expanduser())]


def test_a_program_that_uses_hydra_itself_keeps_it() -> None:
    with hydra.initialize(config_path=None, version_base=None):
        theirs = GlobalHydra.instance().hydra
        assert compose_jobs([], multirun=False)[0]["seed"] == 0
        assert GlobalHydra.instance().hydra is theirs


RADAM = "optimizer.name=torch.optim.RAdam"


def test_another_class_drops_the_settings_that_it_does_not_have() -> None:
    (config,) = compose_jobs(prepare_overrides([RADAM]), multirun=False)
    # of optimizer=sgd: momentum, decay_norms_and_biases, norms_and_biases_lr_factor are gone
    assert config["optimizer"].keys() == {"name", "lr", "weight_decay"}
    check(config)
    assert set(replaced_settings(prepare_overrides([RADAM]))) == {
        "optimizer.momentum",
        "optimizer.decay_norms_and_biases",
        "optimizer.norms_and_biases_lr_factor",
    }
    assert replaced_settings(prepare_overrides(["optimizer=adam"])) == []


@pytest.mark.parametrize("typed", ["optimizer.momentum=0.9", "optimizer.momentum=0.8"])
def test_what_is_typed_is_not_dropped_but_refused(typed: str) -> None:
    (config,) = compose_jobs(prepare_overrides([RADAM, typed]), multirun=False)
    with pytest.raises(UserError, match=r"Unknown setting `optimizer\.momentum`"):
        check(config)


def test_an_experiments_settings_are_not_dropped_but_refused() -> None:
    overrides = prepare_overrides(["experiment=resnet18_scratch", RADAM])
    (config,) = compose_jobs(overrides, multirun=False)
    with pytest.raises(UserError, match=r"Unknown setting `optimizer\.norms_and_biases_lr_factor`"):
        check(config)


def test_settings_that_the_class_needs_are_all_named() -> None:
    typed = ["scheduler.name=torch.optim.lr_scheduler.CyclicLR", "scheduler.interval=step"]
    (config,) = compose_jobs(prepare_overrides(typed), multirun=False)
    assert config["scheduler"].keys() == {"name", "interval"}
    with pytest.raises(UserError, match=r"`scheduler\.base_lr` and `scheduler\.max_lr`"):
        check(config)


def test_a_run_is_named_after_its_own_network() -> None:
    name = "model.network.name=torchvision.models.mnasnet.MNASNet"
    (config,) = compose_jobs(prepare_overrides([name]), multirun=False)
    assert config["run_dir"].endswith("_MNASNet")
    assert config["model"]["network"] == {"name": "torchvision.models.mnasnet.MNASNet"}
    assert config["model"]["label_smoothing"] == 0.1  # of the classifier, not of the network
    (config,) = compose_jobs(prepare_overrides([name, "run_dir=runs/x_fast_cnn"]), multirun=False)
    assert config["run_dir"] == "runs/x_fast_cnn"


def test_several_callbacks_can_be_chosen_and_own_ones_added() -> None:
    overrides = [
        "callbacks=[lr_monitor,device_stats]",
        "callbacks.stop.name=lightning.pytorch.callbacks.EarlyStopping",
        "callbacks.stop.monitor=val/loss",
        "callbacks.lr_monitor.logging_interval=epoch",
    ]
    (config,) = compose_jobs(prepare_overrides(overrides), multirun=False)
    assert check(config)["callbacks"].keys() == {"lr_monitor", "device_stats", "stop"}
    assert config["callbacks"]["lr_monitor"]["logging_interval"] == "epoch"
    without = [*overrides, "~callbacks.device_stats"]
    (config,) = compose_jobs(prepare_overrides(without), multirun=False)
    assert config["callbacks"].keys() == {"lr_monitor", "stop"}
    jobs = compose_jobs(prepare_overrides(["callbacks=lr_monitor,swa"]), multirun=True)
    assert [list(job["callbacks"]) for job in jobs] == [["lr_monitor"], ["swa"]]


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        (["callbacks=lr_monitors"], "did you mean `callbacks=lr_monitor`?"),
        (["callbacks=[lr_monitor,swap]"], "did you mean `callbacks=swa`?"),
        (["optimizer=[sgd,adam]"], "`optimizer` to be one of"),
        (["callbacks.mine.monitor=x"], "`callbacks.mine.name`, the import path of a class"),
        (["callbacks.mine=x"], "`callbacks.mine.name`, the import path of a class"),
        (["callbacks.mine.name=3"], "`callbacks.mine.name` to be an import path, but got 3"),
        (
            ["data=synthetic", "data.source.name=yaml.B", "plugins=[yaml]"],
            "it exists with data=own",
        ),
        (["data.source.name=nowhere_at_all.B", "plugins=[nowhere_at_all]"], "is neither installed"),
        (["data=own"], "`data.source.name` to be an import path, but it is missing"),
        (["plugins=[a.b]", RADAM], "trust the whole package, a"),
        (["optimizer.name=adamm"], "one of adam, adamw, sgd or an import path"),
        ([RADAM, "optimizer.betas=[0.9]"], "`optimizer.betas` to be a list of at least 2 values"),
        (
            ["model=resnet18", "model.network.name=torch.nn.Linear"],
            "Unknown setting `model.network",
        ),
        ([RADAM, "optimizer.lr=-1"], "to be built from its settings, but it raised ValueError"),
    ],
)
def test_own_parts_that_cannot_be_are_refused(typed: list[str], expected: str) -> None:
    with pytest.raises(UserError) as error, hydra_errors_for_users():
        overrides = prepare_overrides(typed)
        check_names(overrides)
        (config,) = compose_jobs(overrides, multirun=False)
        with trusting(config["plugins"]):
            check(config)
    assert expected in str(error.value)


def test_the_settings_that_are_shown_are_those_that_are_used(
    capsys: pytest.CaptureFixture[str],
) -> None:
    network = "model.network.name=torchvision.models.mnasnet.MNASNet"
    assert main([network, RADAM, "--cfg", "job"]) == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert shown["model"]["network"] == {"name": "torchvision.models.mnasnet.MNASNet"}
    assert main([RADAM, "--cfg", "job", "--package", "optimizer"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("# @package optimizer\n")
    assert yaml.safe_load(shown).keys() == {"name", "lr", "weight_decay"}
