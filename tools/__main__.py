# SPDX-License-Identifier: Apache-2.0
"""``python -m tools COMMAND``: the command line of the checkout; ``python -m tools`` lists the commands."""

from __future__ import annotations

import sys
from collections.abc import Callable

import fire

from tools.augmentation_gallery import augmentations
from tools.bench.command import bench
from tools.check.command import check
from tools.real_ct import real_ct
from tools.restoration import restoration
from tools.results import results
from volseg.errors import UserError

COMMANDS: dict[str, Callable[..., None]] = {
    "augmentations": augmentations,
    "bench": bench,
    "check": check,
    "real_ct": real_ct,
    "restoration": restoration,
    "results": results,
}


def main() -> None:
    """Run the command line; a user's mistake is one line on stderr and exit status 1."""
    try:
        fire.Fire(COMMANDS, name="python -m tools")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
