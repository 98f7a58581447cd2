# SPDX-License-Identifier: Apache-2.0
"""Commands for the checkout: ``python -m tools COMMAND``. Bundles and ``volseg`` never import this package."""

from __future__ import annotations

from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
