# SPDX-License-Identifier: Apache-2.0
"""``python -m volseg COMMAND``: find, download and verify bundles; ``python -m volseg`` lists the commands."""

from __future__ import annotations

from volseg.console.fire_commands import run
from volseg.registry.commands import COMMANDS

if __name__ == "__main__":
    run(COMMANDS, "python -m volseg")
