# SPDX-License-Identifier: Apache-2.0
"""Commands for the checkout: ``python -m tools COMMAND``. Bundles and ``volseg`` never import this package."""

from __future__ import annotations

import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent

# Python looks for modules in the current folder first, which may be that of a bundle under review.
if sys.path and Path(sys.path[0]).resolve() == Path.cwd() != REPOSITORY:
    del sys.path[0]
