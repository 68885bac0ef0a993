"""One network per file: images (B, 1, H, W) float -> logits (B, 10).

A network named `my_net` is the one class that `my_net.py` lists in its `__all__`; a YAML in
`conf/model/` that says `network: {name: my_net, …}` makes it `fashion-lit train model=my_net`.
"""

import pkgutil
from importlib import import_module

from torch import nn

NAMES = tuple(sorted(module.name for module in pkgutil.iter_modules(__path__)))


def network_class(name: str) -> type[nn.Module]:
    """Return the network class of `networks/<name>.py`; `name` is one of NAMES."""
    module = import_module(f"{__name__}.{name}")
    (class_name,) = module.__all__
    return getattr(module, class_name)
