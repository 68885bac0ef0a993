"""Import the class that a setting such as `model.network.name=my_nets.MyNet` names, if trusted.

    with trusting(["my_nets"]):
        find_class("my_nets.MyNet", nn.Module, "model.network.name")

Importing a module executes it, so a name alone, which may stand in a stranger's run, imports
nothing: it must be in a module that is trusted for its kind, such as torch.optim, or in a package
that the command line or the caller trusts for this command. Runs record names, never trust. And a
name can only mean a class of the expected kind that its own package defines, so that
`my_nets.os.system` and other functions cannot be called.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from importlib import import_module
from importlib.machinery import PathFinder
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from inspect import isabstract
from keyword import iskeyword
from pathlib import Path
from types import ModuleType
from typing import Any

from fashion_lit.errors import UserError
from fashion_lit.text import describe_error, did_you_mean, shorten

_plugins: ContextVar[frozenset[str]] = ContextVar("plugins", default=frozenset())


def names_of(plugins: Any) -> list[str]:
    """Return the packages in a list or tuple, or the one that a text names.

    Raises UserError unless each is the name of a package or module, without dots.
    """
    names = list(plugins) if isinstance(plugins, list | tuple) else [plugins]
    for name in names:
        if not isinstance(name, str) or not name.isidentifier():
            whole = name.partition(".")[0] if isinstance(name, str) else ""
            hint = f"; trust the whole package, {whole}." if whole.isidentifier() else "."
            raise UserError(
                "Expected `plugins` to be a list of packages, as in plugins=[my_nets], but got "
                f"{shorten(repr(name))}{hint}"
            )
    return names


@contextmanager
def trusting(plugins: Sequence[str]) -> Iterator[None]:
    """Trust these packages, in addition to those trusted already, within a `with`.

    Raises UserError unless it is a list of names of packages or modules, without dots, that are
    installed or in the working directory.
    """
    names = names_of(plugins)
    for name in names:
        check_exists(name)
    token = _plugins.set(_plugins.get() | set(names))
    try:
        yield
    finally:
        _plugins.reset(token)


def check_exists(name: str) -> None:
    """Raise UserError unless there is a package or module of this name; imports nothing."""
    place = Path.cwd()
    if name in sys.modules or find_spec(name) or PathFinder.find_spec(name, [str(place)]):
        return
    known = [path.stem for path in place.glob("*.py")]
    raise UserError(
        f"Expected `plugins` to name packages or modules, but {name} is neither installed nor in "
        f"{place}{did_you_mean(name, known) or '.'}"
    )


def trusted_plugins() -> tuple[str, ...]:
    """Return the packages that are trusted now, sorted."""
    return tuple(sorted(_plugins.get()))


def plugins_override(packages: Sequence[str]) -> list[str]:
    """Return the override that trusts these packages, in a list; [] if there are none."""
    return [f"plugins=[{','.join(packages)}]"] if packages else []


def is_import_path(name: object) -> bool:
    """Return whether a part's name is an import path, `package.Class`, and no built-in name."""
    return isinstance(name, str) and "." in name


def is_within(path: str, modules: Sequence[str]) -> bool:
    """Return whether an import path is in one of the modules, or below it."""
    return any(path.startswith(f"{module}.") for module in modules)


def find_class(path: str, base: type, setting: str, modules: Sequence[str] = ()) -> type[Any]:
    """Return the class that an import path names, after importing its module.

    Args:
        path: such as "torch.optim.RAdam".
        base: the class that it has to derive from.
        setting: the setting that names it, for messages.
        modules: those that are trusted for this kind of class.

    Raises UserError if it is not trusted (nothing is imported then), if importing it fails, and
    unless it is a class of this kind that its package defines.
    """
    check_import_path(setting, path)
    package, name = path.partition(".")[0], path.rpartition(".")[2]
    check_trusted(path, setting, modules)
    found = getattr(_import(path, package, setting), name, None)
    if found is None:
        known = _classes_in(path.rpartition(".")[0], base)
        raise UserError(
            f"Expected `{setting}` to name a class, but {path.rpartition('.')[0]} has no {name}"
            f"{did_you_mean(name, known) or '.'}"
        )
    if not isinstance(found, type):
        raise UserError(
            f"Expected `{setting}` to name a class, but {path} is a {type(found).__name__}."
        )
    places = (package,) if package in _plugins.get() else modules
    if not is_within(f"{found.__module__}.", places):
        raise UserError(
            f"Expected `{setting}` to name a class by its own package, but {path} is defined in "
            f"{found.__module__}; name it {found.__module__}.{found.__qualname__}."
        )
    if not issubclass(found, base) or isabstract(found) or found is base:
        reason = "is the base class itself" if found is base else "is abstract"
        reason = reason if issubclass(found, base) else "is none"
        raise UserError(
            f"Expected `{setting}` to name a subclass of {base.__module__}.{base.__name__}, but "
            f"{path} {reason}."
        )
    return found


def check_trusted(path: str, setting: str, modules: Sequence[str]) -> None:
    """Raise UserError unless a class may be imported; the arguments are those of `find_class`."""
    package = path.partition(".")[0]
    if package in _plugins.get():
        return
    if not is_within(path, modules):
        raise not_trusted({setting: path})
    try:
        version(package)
    except PackageNotFoundError:
        raise UserError(
            f"`{setting}` is {path}, but {package} is not installed: pip install {package}"
        ) from None


def check_import_path(setting: str, path: str) -> None:
    """Raise UserError unless a text is an import path of a package other than Python's own library.

    That library holds no parts.
    """
    words = path.split(".")
    if len(words) < 2 or not all(word.isidentifier() and not iskeyword(word) for word in words):
        raise UserError(
            f"Expected `{setting}` to be a name or an import path, as in my_nets.MyNet, but got "
            f"{shorten(repr(path))}."
        )
    if words[0] in sys.stdlib_module_names:
        raise UserError(
            f"Expected `{setting}` to name a class of this kind, but {path} is in Python's own "
            "library, which has none."
        )


def not_trusted(parts: Mapping[str, str]) -> UserError:
    """Return the error of parts whose packages are not trusted: {setting: import path}."""
    listed = " and ".join(f"`{setting}` is {path}" for setting, path in parts.items())
    names = ",".join(dict.fromkeys(path.partition(".")[0] for path in parts.values()))
    return UserError(
        f"{listed}, which would be imported and so execute code; if you trust it, type "
        f"plugins=[{names}] (evaluate and leaderboard: --plugins {names})."
    )


def _import(path: str, package: str, setting: str) -> ModuleType:
    """Import the module of a class; one beside the working directory counts for plugins."""
    place = str(Path.cwd())
    if package in _plugins.get() and place not in sys.path:
        sys.path.append(place)  # last, so that it hides no installed package
    module = path.rpartition(".")[0]
    try:
        return import_module(module)
    except (Exception, SystemExit) as error:
        if isinstance(error, ModuleNotFoundError) and module.startswith(str(error.name)):
            reason = f"there is no module {error.name}"
        else:
            reason = f"importing {module} failed: {describe_error(error)}"
        raise UserError(f"`{setting}` is {path}, but {reason}.") from None


def _classes_in(module: str, base: type) -> list[str]:
    """Return the names of the classes of a kind in an imported module."""
    return [
        name
        for name, value in vars(sys.modules[module]).items()
        if isinstance(value, type) and issubclass(value, base)
    ]
