"""One network per file: images (B, in_channels, H, W) float -> logits (B, num_classes).

The network `my_net` is the last class in `my_net.py`, after its building blocks. A file
`conf/model/my_net.yaml` with `network: {name: my_net, …}` makes it available as
`fashion-lit train model=my_net`. A name may also be the import path of a class elsewhere.
"""

import inspect
import pkgutil
from collections.abc import Mapping
from importlib import import_module
from typing import Any

from torch import nn
from torch.nn.parameter import UninitializedParameter

from fashion_lit.errors import UserError
from fashion_lit.parts.kinds import build_part
from fashion_lit.parts.trust import is_import_path

NAMES = tuple(sorted(module.name for module in pkgutil.iter_modules(__path__)))


def network_class(name: str) -> type[nn.Module]:
    """Return the network class of `networks/<name>.py`; `name` is one of NAMES.

    Raises UserError if the file defines no network.
    """
    module = import_module(f"{__name__}.{name}")
    classes = [item for item in vars(module).values() if isinstance(item, type)]
    own = [item for item in classes if item.__module__ == module.__name__]  # excludes imports
    networks = [item for item in own if issubclass(item, nn.Module)]
    if not networks:
        raise UserError(
            f"Expected fashion_lit/models/networks/{name}.py to define a network, a "
            "torch.nn.Module, as its last class, but it defines none."
        )
    return networks[-1]


def build_network(settings: Mapping[str, Any], *, in_channels: int, num_classes: int) -> nn.Module:
    """Build a network from {"name": one of NAMES or an import path, **arguments}.

    Raises UserError if an import path names no network or its constructor raises an error.

    Args:
        settings: its name and arguments.
        in_channels: channels of the images; a constructor may also call them `in_chans`.
        num_classes: number of classes. A constructor need not take these two.
    """
    given = {"in_channels": in_channels, "num_classes": num_classes}
    if is_import_path(settings["name"]):
        network = build_part("model.network", settings, **given, in_chans=in_channels)
        if any(isinstance(weights, UninitializedParameter) for weights in network.parameters()):
            raise UserError(
                "Expected a network whose weights all exist once it is built, but "
                f"{settings['name']} has lazy layers; give their sizes."
            )
        return network
    arguments = dict(settings)
    kind = network_class(arguments.pop("name"))
    known = inspect.signature(kind).parameters
    return kind(**arguments, **{k: value for k, value in given.items() if k in known})
