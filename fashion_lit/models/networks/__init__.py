"""One network per file: images (B, in_channels, H, W) float -> logits (B, num_classes).

The network `my_net` is the last class in `my_net.py`, after its building blocks. A file
`conf/model/my_net.yaml` with `network: {name: my_net, …}` makes it available as
`fashion-lit train model=my_net`.
"""

import pkgutil
from importlib import import_module

from torch import nn

from fashion_lit.errors import UserError

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
