"""Small measurements, each in a separate process that prints one line of JSON.

python tests/gpu/probes.py environment
python tests/gpu/probes.py compare FIRST/checkpoints/last.ckpt SECOND/checkpoints/last.ckpt
python tests/gpu/probes.py --small anatomy experiment=report_b data=synthetic

All except `environment` need fashion-lit installed, or its folder in PYTHONPATH. They also run
without a GPU; figures that need one are then absent or null.
"""

import argparse
import importlib
import json
from collections.abc import Mapping

# The module of each probe, a function of the same name. Only that module is imported, so that
# `environment` also works on a machine where the project cannot be imported.
PROBES: Mapping[str, str] = {
    "environment": "probe_machine",
    "compare": "probe_runs",
    "scalars": "probe_runs",
    "waits": "probe_waits",
    "anatomy": "probe_steps",
    "fused_sgd": "probe_faults",
    "early_reads": "probe_faults",
    "share": "probe_shares",
    "shares": "probe_shares",
}


def main() -> None:
    """Run one probe."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--small", action="store_true", help="few repetitions (anatomy only)")
    parser.add_argument("probe", choices=PROBES)
    parser.add_argument("arguments", nargs="*", help="the probe's arguments")
    args = parser.parse_args()
    probe = getattr(importlib.import_module(PROBES[args.probe]), args.probe)
    print(json.dumps(probe(*args.arguments, **({"small": True} if args.small else {}))))


if __name__ == "__main__":
    main()
