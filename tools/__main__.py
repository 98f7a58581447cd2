# SPDX-License-Identifier: Apache-2.0
"""``python -m tools COMMAND``: the command line of the checkout; ``python -m tools`` lists the commands."""

from __future__ import annotations

from collections.abc import Callable

from tools.audit import audit
from tools.augmentation_gallery import augmentations
from tools.bench.command import bench
from tools.check.command import check
from tools.faults import faults
from tools.federated.command import federated
from tools.fuzz.command import fuzz
from tools.label.command import label
from tools.pack import pack
from tools.painted_ct import painted_ct
from tools.phantom_styles import phantom_styles
from tools.promise12_subset import promise12_subset
from tools.publish import publish
from tools.real_ct import real_ct
from tools.real_em import real_em
from tools.restoration import restoration
from tools.results import results
from tools.tables import tables
from tools.zoo import zoo
from volseg.console.fire_commands import run
from volseg.registry.commands import COMMANDS as REGISTRY_COMMANDS

COMMANDS: dict[str, Callable[..., None]] = {
    "audit": audit,
    "augmentations": augmentations,
    "bench": bench,
    "check": check,
    "faults": faults,
    "federated": federated,
    "fuzz": fuzz,
    "label": label,
    "pack": pack,
    "painted_ct": painted_ct,
    "phantom_styles": phantom_styles,
    "promise12_subset": promise12_subset,
    "publish": publish,
    "real_ct": real_ct,
    "real_em": real_em,
    "restoration": restoration,
    "results": results,
    "tables": tables,
    "zoo": zoo,
    **REGISTRY_COMMANDS,
}


def main() -> None:
    """Run the command line."""
    run(COMMANDS, "python -m tools")


if __name__ == "__main__":
    main()
