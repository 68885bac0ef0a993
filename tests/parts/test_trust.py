"""A setting imports trusted packages alone, and names classes of its kind alone."""

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from torch import nn
from torch.optim import Optimizer

from fashion_lit.errors import UserError
from fashion_lit.parts.trust import find_class, is_import_path, trusted_plugins, trusting

Package = Callable[[str], str]
NET = "from torch import nn\nclass Net(nn.Module): pass\n"
MODULES = ("torch.nn", "torch.optim", "torchvision.models", "timm.models")
CALLABLE = "class Own:\n    def __call__(self, images, generator): return images\n"


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Record calls of os.system and subprocess.run instead of making them."""
    made: list[Any] = []
    monkeypatch.setattr(os, "system", lambda *given: made.append(given))
    monkeypatch.setattr(subprocess, "run", lambda *given, **more: made.append(given))
    return made


def refusal(path: str, base: type = nn.Module, modules: Sequence[str] = MODULES) -> str:
    """Return the message with which a class is refused."""
    with pytest.raises(UserError) as error:
        find_class(path, base, "model.network.name", modules)
    return str(error.value)


def test_names_with_dots_are_import_paths() -> None:
    assert is_import_path("torch.optim.RAdam")
    assert not is_import_path("adam")
    assert not is_import_path(None)


@pytest.mark.parametrize(
    ("path", "base"),
    [("torch.optim.RAdam", Optimizer), ("torchvision.models.resnet.ResNet", nn.Module)],
)
def test_classes_of_trusted_packages_are_found(path: str, base: type) -> None:
    found = find_class(path, base, "optimizer.name", MODULES)
    assert issubclass(found, base)
    assert found.__name__ == path.rpartition(".")[2]


def test_a_package_is_imported_only_if_it_is_trusted(
    package: Package, imported: Callable[[], bool]
) -> None:
    name = package(NET)
    text = refusal(f"{name}.Net")
    assert f"plugins=[{name}]" in text
    assert f"--plugins {name}" in text
    assert not imported()
    assert name not in sys.modules
    with trusting([name]):
        assert find_class(f"{name}.Net", nn.Module, "model.network.name").__name__ == "Net"
    assert imported()
    assert trusted_plugins() == ()
    assert f"plugins=[{name}]" in refusal(f"{name}.Net")  # imported, but trusted no longer


def test_trust_of_others_imports_nothing(package: Package, imported: Callable[[], bool]) -> None:
    name = package(NET)
    with trusting(["yaml"]), trusting(["PIL"]):
        assert trusted_plugins() == ("PIL", "yaml")
        refusal(f"{name}.Net")
    assert not imported()


@pytest.mark.parametrize("plugins", [["os"], ["subprocess"], []])
@pytest.mark.parametrize(
    "path", ["os.system", "subprocess.run", "subprocess.Popen", "os.path.join"]
)
@pytest.mark.parametrize("base", [nn.Module, object])
def test_pythons_own_library_holds_no_parts(
    path: str, plugins: list[str], base: type, calls: list[Any]
) -> None:
    with trusting(plugins):
        assert "Python's own library" in refusal(path, base)
    assert not calls


@pytest.mark.parametrize(
    ("text", "rest", "expected"),
    [
        ("import os\n", "os.system", "there is no module"),
        ("import os\n", "os", "is a module"),
        ("from os import system\n", "system", "to name a class"),
        ("from subprocess import Popen\n", "Popen", "is defined in subprocess; name it"),
        ("from torch.nn import Linear\n", "Linear", "name it torch.nn.modules.linear.Linear"),
        ("from torch import nn\ndef Net(): return nn.Linear(1, 1)\n", "Net", "is a function"),
        ("from torch import nn\nNet = nn.Linear(1, 1)\n", "Net", "is a Linear"),
        ("class Net: pass\n", "Net", "a subclass of torch.nn.modules.module.Module"),
        (NET, "Nett", "has no Nett; did you mean `Net`?"),
        (NET, "deeper.Net", "there is no module"),
    ],
)
def test_what_is_no_class_of_its_own_package_and_kind_is_refused(
    text: str, rest: str, expected: str, package: Package, calls: list[Any]
) -> None:
    name = package(text)
    with trusting([name]):
        assert expected in refusal(f"{name}.{rest}")
    assert not calls


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("torch.os.system", "plugins=[torch]"),
        ("torch.load", "plugins=[torch]"),
        ("torch.nn.os.system", "there is no module torch.nn.os"),
        ("torch.nn.modules.module.functools.partial", "there is no module torch.nn.modules"),
        ("torch.nn.init.calculate_gain", "is a function"),
        ("torch.optim.lr_scheduler.Counter", "is defined in collections"),
        ("torchmetrics.multimodal.CLIPScore", "plugins=[torchmetrics]"),  # loads code by a name
        ("timm.task.distillation.DistillationTeacher", "plugins=[timm]"),  # loads any address
        ("torch.distributed.nn.RemoteModule", "plugins=[torch]"),
        ("torch.nnx.Linear", "plugins=[torch]"),
        ("class.Net", "an import path"),
        ("torch.nn.Module", "is the base class itself"),
        ("torch.optim.RAdam", "is none"),
        ("torch.nn.Moduel", "did you mean `Module`?"),
        ("torch..nn", "an import path"),
        ("torch.nn.", "an import path"),
        ("a b.c", "an import path"),
    ],
)
def test_trusted_packages_are_no_way_to_other_objects(
    path: str, expected: str, calls: list[Any]
) -> None:
    assert expected in refusal(path)
    assert not calls


def test_an_abstract_class_is_refused(package: Package) -> None:
    name = package(
        "from abc import ABC, abstractmethod\nfrom torch import nn\n"
        "class Net(nn.Module, ABC):\n    @abstractmethod\n    def f(self): ...\n"
    )
    with trusting([name]):
        assert "is abstract" in refusal(f"{name}.Net")


def test_an_augmentation_is_no_class_of_a_trusted_package(package: Package) -> None:
    assert "plugins=[torchvision]" in refusal("torchvision.transforms.v2.RandomCrop", object, ())
    name = package(CALLABLE)
    with trusting([name]):
        assert find_class(f"{name}.Own", object, "augment.own.name").__name__ == "Own"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("raise RuntimeError('boom')", "RuntimeError: boom"),
        ("import sys\nsys.exit(3)", "SystemExit: 3"),
        ("import not_there_at_all", "ModuleNotFoundError: No module named 'not_there_at_all'"),
        ("class Net(", "SyntaxError"),
    ],
)
def test_a_package_whose_import_fails_says_why(text: str, reason: str, package: Package) -> None:
    name = package(text)
    with trusting([name]):
        message = refusal(f"{name}.Net")
    assert f"importing {name} failed" in message
    assert reason in message


def test_a_misspelt_package_is_not_trusted_silently(
    tmp_path: Path, package: Package, imported: Callable[[], bool]
) -> None:
    name = package("")
    with pytest.raises(UserError) as error, trusting([f"{name}s"]):
        pass
    assert f"neither installed nor in {tmp_path}; did you mean `{name}`?" in str(error.value)
    assert not imported()


def test_a_missing_module_of_a_package_is_named(package: Package) -> None:
    name = package("")
    with trusting([name]):
        assert f"there is no module {name}.nets" in refusal(f"{name}.nets.Net")


def test_a_module_beside_the_working_directory_hides_no_installed_one(
    tmp_path: Path, package: Package
) -> None:
    package("")
    (tmp_path / "torchmetrics.py").write_text("raise RuntimeError('the wrong one')")
    (tmp_path / "yaml.py").write_text("raise RuntimeError('the wrong one')")
    with trusting(["yaml", "torchmetrics"]):
        assert "has no Net" in refusal("yaml.Net")
        assert "is none" in refusal("torchmetrics.Accuracy", Optimizer)


@pytest.mark.parametrize(
    "plugins", [["a.b"], ["a-b"], [3], 3, None, ["my_nets", ""], [["x"]], {"a": 1}]
)
def test_plugins_are_names_of_packages(plugins: Any) -> None:
    with pytest.raises(UserError, match="a list of packages"), trusting(plugins):
        pass


def test_trust_ends_with_an_error() -> None:
    with pytest.raises(ZeroDivisionError), trusting(["yaml"]):
        _ = 1 / 0
    assert trusted_plugins() == ()


def test_a_trusted_package_that_is_missing_is_named() -> None:
    modules = ("not_there_at_all",)
    assert "pip install not_there_at_all" in refusal("not_there_at_all.Net", modules=modules)
