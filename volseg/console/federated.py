# SPDX-License-Identifier: Apache-2.0
"""Detect federated learning, where a server sends weights every round and a client must not act on its own."""

from __future__ import annotations

import sys

__all__ = ["is_running"]

# MONAI's client, as NVFlare and others drive it
CLIENT = "monai.fl.client.monai_algo"


def is_running() -> bool:
    """Return True in the process of a federated client.

    There a training neither resumes nor installs weights, its learning rate follows no schedule of a length that only
    the server knows, and an evaluation scores the server's weights on the training's grid.
    """
    return CLIENT in sys.modules
