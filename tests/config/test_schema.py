"""Invalid settings end in a one-sentence error and exit code 2, before anything is built."""

from inspect import signature
from pathlib import Path

import lightning as L
import pytest

from fashion_lit.commands.train import main
from fashion_lit.config.compose import compose_jobs
from fashion_lit.config.groups import with_config_dirs
from fashion_lit.config.overrides import prepare_overrides
from fashion_lit.config.schema import check
from fashion_lit.config.trainer import OWN_TRAINER_KEYS, TrainerSettings
from fashion_lit.errors import UserError


def check_overrides(*overrides: str) -> None:
    for job in compose_jobs(prepare_overrides(overrides), multirun=False):
        check(job)


def test_every_argument_of_lightnings_trainer_is_known() -> None:
    ours = {*TrainerSettings.model_fields, *OWN_TRAINER_KEYS} - {"compile"}
    assert ours == signature(L.Trainer).parameters.keys()


BAD = [
    ("optimizer.weight_dcay=1", "Unknown setting `optimizer.weight_dcay`; did you mean "
     "`optimizer.weight_decay`?"),
    ("+optimizer.weight_dcay=1", "did you mean `optimizer.weight_decay`?"),
    ("++optimizer.weight_dcay=1", "did you mean `optimizer.weight_decay`?"),
    ("lr=0.1", "Unknown setting `lr`; did you mean `optimizer.lr`?"),
    ("+foo=1", "Unknown setting `foo`; fashion-lit train --cfg job shows them all."),
    ("batch_size=64", "Unknown setting `batch_size`; did you mean `data.batch_size`?"),
    ("trainer.max_epoch=3", "did you mean `trainer.max_epochs`?"),
    ("data=synthetic data.root=here", "`data.root`; it exists with data=fashion_mnist."),
    ("optimiser.lr=1", "Unknown setting `optimiser.lr`; did you mean `optimizer.lr`?"),
    ("model.network.dropout=1", "Unknown setting `model.network.dropout`"),
    ("data.batch_size=0", "Expected `data.batch_size` to be greater than 0, but got 0."),
    ("data.batch_size=1.5", "Expected `data.batch_size` to be a whole number, but got 1.5."),
    ("optimizer.lr=-1", "Expected `optimizer.lr` to be greater than 0, but got -1."),
    ("optimizer.lr=nan", "Expected `optimizer.lr` to be a finite number, but got nan."),
    ("optimizer.lr=fast", "Expected `optimizer.lr` to be a number, but got 'fast'."),
    ("optimizer.lr=true", "Expected `optimizer.lr` to be a number, but got True."),
    ("optimizer.lr=null", "Expected `optimizer.lr` to be a number, but got None."),
    ("data.val_size=60000", "Expected `data.val_size` to be smaller than the 60,000 training "
     "images that it is taken from, but got 60,000."),
    ("trainer.max_epochs=abc", "Expected `trainer.max_epochs` to be a whole number, but got 'abc'"),
    ("trainer.max_epochs=0", "Expected `trainer.max_epochs` to be greater than 0, but got 0."),
    ("trainer.limit_val_batches=0", "Expected `trainer.limit_val_batches` to be greater than 0"),
    ("trainer.strategy=ddp_spawn", "but got 'ddp_spawn', whose results stay in its child proc"),
    ("trainer.check_val_every_n_epoch=99", "to be at most trainer.max_epochs="),
    ("trainer.compile=fast", "Expected `trainer.compile` to be true or false or"),
    ("trainer.logger=false", "`trainer.logger` is set by fashion-lit itself; use TensorBoard"),
    ("trainer.fast_dev_run=true", "is set by fashion-lit itself; use debug=one_batch instead."),
    ("trainer.precision=half", "Expected `trainer.precision` to be one of 'auto', 'tf32', "),
    ("trainer.compile=reduce-overhead trainer.accumulate_grad_batches=2", "Expected "
     "`trainer.accumulate_grad_batches` to be 1 with trainer.compile=reduce-overhead, but got 2: "),
    ("trainer.compile=max-autotune trainer.accumulate_grad_batches=2", "use trainer.compile=true."),
    ("data=synthetic data.batch_size=5001", "to be at most the 5,000 training images, but got"),
    ("optimizer=adam optimizer.momentum=0.9", "Unknown setting `optimizer.momentum`; it "
     "exists with optimizer=sgd."),
    ("seed=-1", "Expected `seed` to be at least 0, but got -1."),
    ("seed=4294967296", "Expected `seed` to be less than 4,294,967,296, but got 4294967296."),
    ("seed=abc", "Expected `seed` to be a whole number, but got 'abc'."),
    ("test=maybe", "Expected `test` to be true or false, but got 'maybe'."),
    ("augment.flip=1.1", "Expected `augment.flip` to be at most 1, but got 1.1."),
    ("augment.rotate=181", "Expected `augment.rotate` to be a number from 0 to 180, or one above "),
    ("augment.rotate=[15,0]", "one above 0 with a probability above 0, as in [90,0.5], but got ["),
    ("augment.mixup=[0.2]", "Expected `augment.mixup` to be a number from 0 to 10, or one above "),
    ("augment.cutmix=true", "Expected `augment.cutmix` to be a number from 0 to 10, or one above "),
    ("augment.random_erase_area=[0.4,0.1]", "to be two ascending shares of the image, above 0 and"),
    ("augment.random_erase_fill=white", "to be one of 'random' or 'black', but got 'white'."),
    ("augment.classes=[Shrt]", "Expected `augment.classes` to be null or a list of classes ("),
    ("augment.mixup=0.2 augment.cutmix=1", "`augment.mixup` and `augment.cutmix` to add up to at "
     "most 1, because an image is mixed in one way, but got 2; give each one, as in augment.m"),
    ("augment=strong augment.until_epoch=14", "Expected `augment.until_epoch` to be less than "
     "trainer.max_epochs=14, so that the last epochs are not mixed, but got 14."),
    ("augment.until_epoch=0", "Expected `augment.until_epoch` to be greater than 0, but got 0."),
    ("augment.crop=2", "Unknown setting `augment.crop`; did you mean `augment.shift`?"),
    ("data.class_sampling.Shrt=2", "a weight for each of some classes (T-shirt_top, Trouser, "),
    ("data.class_sampling.Shirt=0", "Expected `data.class_sampling` to be greater than 0"),
    ("model.label_smoothing=1", "Expected `model.label_smoothing` to be less than 1, but got 1."),
    ("model.class_weights=[1,2]", "Expected `model.class_weights` to be a list of 10 values"),
    ("model.class_weights.Shrt=2", "a weight for each of some classes (T-shirt_top, Trouser, "),
    ("data.device=tpu", "Expected `data.device` to be one of 'auto', 'cpu' or 'cuda', but got"),
    ("data=fashion_mist", "Expected `data` to be one of fashion_mnist, folder, idx, own, "
     "synthetic (or data.source.name=PACKAGE.CLASS), but got 'fashion_mist'; did "
     "you mean `data=fashion_mnist`?"),
    ("optimizer=lion", "Expected `optimizer` to be one of adam, adamw, sgd (or optimizer.name="
     "PACKAGE.CLASS), but got 'lion'."),
    ("optimizer.name=adamm", "Expected `optimizer.name` to be one of adam, adamw, sgd or an "
     "import path, but got 'adamm'; did you mean `optimizer.name=adam`?"),
    ("model.network.name=fastcnn", "did you mean `model.network.name=fast_cnn`?"),
    ("optimizer=null", "PACKAGE.CLASS), but got 'null'."),
    ("callbacks.x.name=lightning.pytorch.callbacks.EarlyStopping callbacks.x.monitor=val_loss",
     "Expected `callbacks.x.monitor` to be a metric that a run logs, but got 'val_loss'; did you "
     "mean `val/loss`?"),
    ("callbacks=swa callbacks.swa.swa_epoch_start=99", "swa_epoch_start` to be at most trainer."),
    ("scheduler.name=torch.optim.lr_scheduler.MultiStepLR scheduler.milestones=[a]",
     "Expected `scheduler.milestones.0` to be a whole number, but got 'a'."),
    ("plugins={a:b}", "Expected `plugins` to be a list of packages"),
    ("callbacks=lr_monitr", "callbacks.KEY.name=PACKAGE.CLASS), but got 'lr_monitr'; did you"),
    ("++optimizer.lr={a:1}", "Expected `optimizer.lr` to be a number, but got {'a': 1}."),
    ("++optimizer=3", "PACKAGE.CLASS), but got '3'."),
    ("model.network=3", "Expected `model.network` to be a group of settings, but got 3; choose"),
    ("optimizer.lr=0.1,0.2", "holds several values; add -m (in Python: call sweep) to run "
     "each of them, or write "
     "'optimizer.lr=[0.1,0.2]'"),
    ("nonsense", "Expected an override of the form key=value, but got `nonsense`"),
    ("scheduler=cosine scheduler.warmup_epochs=50", "Expected `scheduler.warmup_epochs` to be "
     "less than trainer.max_epochs="),
    ("scheduler=one_cycle_three_phase scheduler.pct_start=0.5", "Expected `scheduler.pct_start` to "
     "be less than 0.5 with scheduler.three_phase, whose second phase is as long as the first, "
     "but got 0.5."),
    ("scheduler=cyclic scheduler.num_cycles=0", "Expected `scheduler.num_cycles` to be at least 1"),
    ("scheduler=cosine_restarts scheduler.num_cycles=9 scheduler.cycle_growth=10", "Expected `sched"
     "uler.num_cycles` to give each cycle a step or more, but the first of 9 cycles has"),
    ("scheduler=cyclic scheduler.div_factor=1", "Expected `scheduler.div_factor` to be greater t"),
    ("scheduler=cosine_restarts scheduler.cycle_growth=0.5", "`scheduler.cycle_growth` to be at l"),
    ("model.swa_start=0.75", "Expected one average of the weights, but both model.ema_decay and "
     "model.swa_start are set; choose averaging=ema or averaging=swa."),
    ("averaging=swa model.swa_start=1", "Expected `model.swa_start` to be less than 1, but got 1"),
    ("averaging=emma", "Expected `averaging` to be one of ema, none, swa, null, but got 'emma'; "
     "did you mean `averaging=ema`?"),
    ("model=resnet18 model.unfreeze_epoch=1", "model.freeze_backbone is false; set it to true"),
    ("model=resnet18 model.pretrained=false model.weights=w.pth", "model.pretrained is false"),
    ("trainer.check_val_every_n_epoch=0", "`trainer.check_val_every_n_epoch` to be greater than 0"),
    ("trainer.check_val_every_n_epoch=null", "Expected `trainer.val_check_interval` to be a number "
     "of batches or a duration with trainer.check_val_every_n_epoch=null, but got None."),
    ("trainer.val_check_interval=0", "Expected `trainer.val_check_interval` to be greater than 0"),
    ("trainer.val_check_interval=1.5", "to be a whole number or at most 1 or a time"),
    ("trainer.val_check_interval=500", "at most the 375 training batches of an epoch, but got 500"),
    ("trainer.val_check_interval=9999 trainer.check_val_every_n_epoch=null", "of the run, but got"),
    ("trainer.accumulate_grad_batches=0", "to be greater than 0, but got 0."),
    ("trainer.limit_train_batches=0", "`trainer.limit_train_batches` to be greater than 0, but"),
    ("trainer.limit_train_batches=1.5", "to be a whole number or at most 1, but got 1.5."),
    ("trainer.limit_train_batches=0.001", "at least one of the 375 train batches, 0.00267 of them"),
    ("trainer.limit_test_batches=0.001", "at least one of the 10 test batches, 0.1 of them, but"),
    ("trainer.overfit_batches=0.001", "`trainer.overfit_batches` to be at least one of the 375"),
    ("trainer.overfit_batches=0.05", "`trainer.overfit_batches` to be at least one of the 12 val"),
    ("data.batch_size=1 model=report_cnn", "`data.batch_size` to be at least 2, but got 1: at dat"),
    ("model.network.widths=[1000000000,1000000000]", "that fits into memory, but: Storage si"),
    ("trainer.max_steps=2 trainer.min_steps=1", "Expected no `trainer.min_steps` with tra"),
    ("trainer.max_time=3600", "to be a time as DD:HH:MM:SS or a group of settings, but got 3600."),
    ("model=report_cnn data.image_size=7", "Expected a network for images of 7 x 7 pixels, b"),
    ("optimizer.lr=1e39", "`optimizer.lr` to be 0 or of a size from 1e-30 to 1e30, but got"),
    ("model.class_weights={Shirt:2,shirt:3}", "a weight for each of some classes"),
    ("model.network.activation=ReLU", "but got 'ReLU'; did you mean `relu`?"),
    ("trainer.compile=reduce_overhead", "did you mean `reduce-overhead`?"),
    ("model=wide_resnet model.network.width=1000000000", "that fits into memory, but: "),
    ("model=wide_resnet model.network.depth=30", "depth` to be 6 n + 4, but got 30; use 28."),
    ("model=vgg model.network.depth=17", "depth` to be one of 11, 13, 16 or 19, but got 17."),
    ("model.network.attention=sE", "to be one of 'se', 'cbam' or 'eca', but got 'sE'"),
    ("model.network.drop_path=1", "Expected `model.network.drop_path` to be less than 1, but got"),
    ("model.network.in_channels=3", "Unknown setting `model.network.in_channels`"),
    ("trainer.max_steps=0", "Expected `trainer.max_steps` to be greater than 0 or -1, but got 0."),
    ("trainer.max_time=abc", "Expected `trainer.max_time` to be a time as DD:HH:MM:SS or"),
    ("trainer.max_time=00:00:00:00", "a duration of 1 second to 30 years, but got '00:00:00:00'."),
    ("trainer.max_time={days:99999999}", "a duration of 1 second to 30 years, but got {'days':"),
    ("scheduler=plateau trainer.val_check_interval=00:00:01:00", "a number with scheduler=pla"),
    ("trainer.min_epochs=2 trainer.max_steps=750", "more than the 750 steps of trainer.min_epochs"),
    ("trainer.min_epochs=14 trainer.val_check_interval=00:00:01:00", "less than trainer.max_"),
    ("~data.device", "`~data.device` would remove a setting that every run has; give it a value"),
    ("data.train_size=48001", "`data.train_size` to be at most the 48,000 images that are"),
    ("data.train_size=100", "`data.batch_size` to be at most the 100 training images, but got 128"),
    ("trainer.min_epochs=-1", "Expected `trainer.min_epochs` to be greater than 0, but got -1."),
    ("trainer.min_epochs=99", "`trainer.min_epochs` to be at most trainer.max_epochs=14, but got"),
    ("trainer.gradient_clip_val=-1", "to be at least 0, but got -1."),
    ("trainer.gradient_clip_algorithm=foo", "to be one of 'norm' or 'value', but got 'foo'."),
    ("trainer.strategy=fsdp", "`trainer.strategy` to be one of auto, ddp, ddp_find_unused_param"),
    ("trainer.devices=0", "Expected `trainer.devices` to be greater than 0 or "),
    ("trainer.devices=4096", "on this machine, but got 4,096."),
    ("trainer.profiler=foo", "to be one of 'simple', 'advanced' or 'pytorch', but got 'foo'."),
    ("trainer.log_every_n_steps=-5", "to be at least 0, but got -5."),
    ("trainer.num_sanity_val_steps=-2", "to be at least 0 or -1, but got -2."),
    ("trainer.limit_predict_batches=3", "is set by fashion-lit itself; use fashion-lit evaluate"),
    ("seed=" + "9" * 5000, "Expected an override of the form key=value, but got `seed=999"),
    ("optimizer.name=[1]", "to be one of adam, adamw, sgd or an import path, but got [1]"),
    ("model=resnet18 model.backbone=vgg12", "network of torchvision, such as vgg1"),
    ("model=resnet18 model.backbone=googlenet", "`model.backbone` to be a classification network"),
    ("model=resnet18 model.backbone=vgg11 data.image_size=28", "images of 28 x 28 pixels, but: "),
    ("model=resnet18 model.backbone=vit_b_16 data.image_size=64", "Expected 224 but got 64"),
    ("model=vgg data.image_size=7", "Expected a network for images of 7 x 7 pixels, but: "),
    ("model=resnet18 model.grey_stem=sum model.reinit_stem=true", "model.reinit_stem is true, whi"),
]  # fmt: skip


@pytest.mark.parametrize(("overrides", "message"), BAD, ids=[case[0] for case in BAD])
def test_bad_settings_end_in_one_sentence(overrides: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        check_overrides(*overrides.split())
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


PICTURES = ["data=folder", "data.root=PLACE", "data.size=16", "data.batch_size=8"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data=idx"], "`data.root` to be the folder of the images, as in data.root=FOLDER, but"),
        (["data=folder", "data.rot=3"], "Unknown setting `data.rot`; did you mean `data.root`?"),
        ([*PICTURES, "data.val_size=90"], "smaller than the 90 training images that it is taken"),
        ([*PICTURES, "data.val_size=1.0"], "`data.val_size` to be a whole number or less than 1"),
        ([*PICTURES, "data.batch_size=73"], "at most the 72 training images, but got 73"),
        ([*PICTURES, "data.train_size=2", "data.batch_size=2"], "of each of the 3 classes of col"),
        ([*PICTURES, "augment.shift=16"], "`augment.shift` to be less than 16, but got 16"),
        ([*PICTURES, "augment.classes=[Shirt]"], "a list of classes (Red car, blau, green), but"),
        ([*PICTURES, "data.class_sampling.Shirt=2"], "some classes (Red_car, blau, green), but"),
        ([*PICTURES, "model.class_weights=[1,2]"], "a list of 3 values, one for each class, but"),
        ([*PICTURES, "model.network.widths=[4,8,8,8,8,8]"], "at least 32 x 32 pixels, but got 16"),
    ],
)
def test_settings_that_do_not_fit_the_images_are_refused(
    overrides: list[str], message: str, picture_folder: Path
) -> None:
    place = f"data.root={picture_folder.as_posix()}"
    with pytest.raises(UserError) as caught:
        check_overrides(*(place if o == "data.root=PLACE" else o for o in overrides))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_settings_by_class_name_the_classes_of_the_images(
    picture_folder: Path, idx_folder: Path
) -> None:
    typed = [*PICTURES[2:], "model.class_weights={red_car: 2}", "augment.classes=[Green,blau]"]
    typed += [f"data.root={picture_folder.as_posix()}", "data=folder", "augment.erase=12"]
    (config,) = compose_jobs(prepare_overrides(typed), multirun=False)
    checked = check(config)
    assert checked["model"]["class_weights"] == [2.0, 1.0, 1.0]
    assert checked["augment"]["classes"] == ["blau", "green"]
    typed = ["data=idx", f"data.root={idx_folder.as_posix()}", "data.class_sampling={4: 2}"]
    typed += ["data.batch_size=8", "augment.classes=[0,3]", "model.class_weights.1=3"]
    (config,) = compose_jobs(prepare_overrides(typed), multirun=False)
    checked = check(config)
    assert checked["data"]["class_sampling"] == [1.0, 1.0, 1.0, 1.0, 2.0]
    assert checked["model"]["class_weights"] == [1.0, 3.0, 1.0, 1.0, 1.0]
    assert checked["augment"]["classes"] == ["0", "3"]


def test_without_test_images_there_is_no_test(picture_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "pets").mkdir()
    (tmp_path / "pets" / "train").symlink_to(picture_folder / "train")
    typed = [f"data.root={(tmp_path / 'pets').as_posix()}", "data=folder", "data.batch_size=8"]
    for more, key in (([], "test"), (["data.validate_on_test=true"], "data.validate_on_test")):
        with pytest.raises(UserError, match=f"test images for {key}=true, but pets has none; set"):
            check_overrides(*typed, f"test={str(not more).lower()}", *more)
    check_overrides(*typed, "test=false")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-m", "seed=0,1", "hydra/launcher=basic"], "`hydra/launcher` has no effect, because"),
        (["-m", "seed=0,1", "test=true"], "Expected `test` to be false in a multirun"),
        (["-m", "seed=0,1", "run_dir=here"], "`run_dir` is the directory of a single run; in"),
        (["sweep_name=lr"], "`sweep_name` names a multirun; add -m"),
    ],
)
def test_settings_of_the_other_mode_are_refused(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "override",
    [
        "seed=0",
        "trainer.gradient_clip_val=1",  # not in train.yaml, but an argument of the Trainer
        "+trainer.gradient_clip_val=1.5",
        "trainer.devices=[0]",
        "optimizer.betas=[0.9,0.99] optimizer=adamw",
        "optimizer.lr=1",
        "model.class_weights=[1,1,1,1,1,1,2,1,1,1]",
        "augment.rotate=[15,0.5] augment.brightness=0.2 augment.random_erase_area=[0.1,0.1]",
        "augment.mixup=[0.2,0.5] augment.cutmix=[1,0.5] augment.until_epoch=10",
        "augment=strong data.class_sampling={Shirt:1.5}",
        "~trainer.log_every_n_steps",
        "+experiment=report_b",
        "data.root=/somewhere/else",
        "trainer.compile=true trainer.accumulate_grad_batches=2",
        "trainer.compile=reduce-overhead",
        "precision=tf32",
    ],
)
def test_good_settings_pass(override: str) -> None:
    check_overrides(*override.split())


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("model.class_weights.Shirt=2", [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 2.0, 1.0, 1.0, 1.0]),
        (
            "model.class_weights={Shirt:2,coat:3}",
            [1.0, 1.0, 1.0, 1.0, 3.0, 1.0, 2.0, 1.0, 1.0, 1.0],
        ),
        ("model.class_weights.T-shirt/top=2.5", [2.5, *[1.0] * 9]),
        ("model.class_weights.Ankle boot=2", [*[1.0] * 9, 2.0]),
        ("model.class_weights=[1,1,1,1,1,1,2,1,1,1]", [*[1.0] * 6, 2.0, *[1.0] * 3]),
        ("model.class_weights=null", None),
    ],
)
def test_class_weights_have_names(typed: str, expected: list[float] | None) -> None:
    for key in ("model.class_weights", "data.class_sampling"):
        text = typed.replace("model.class_weights", key)
        overrides = prepare_overrides(with_config_dirs([text], []))
        (config,) = compose_jobs(overrides, multirun=False)
        group, setting = key.split(".")
        assert check(config)[group][setting] == expected


def test_the_classes_of_an_augmentation_are_recorded_as_the_data_set_names_them() -> None:
    typed = "augment.classes=[ankle_boot,T-shirt/top,shirt]"
    (config,) = compose_jobs(prepare_overrides([typed]), multirun=False)
    assert check(config)["augment"]["classes"] == ["T-shirt/top", "Shirt", "Ankle boot"]
