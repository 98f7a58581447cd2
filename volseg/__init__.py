# SPDX-License-Identifier: Apache-2.0
"""What the bundles of this repository share: blocks, losses, transforms, data, metrics, phantoms, runtime."""

__version__ = "0.1.0"
