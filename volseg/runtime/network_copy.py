# SPDX-License-Identifier: Apache-2.0
"""A copy of a network whose modules can be exchanged while the network stays as it is."""

from __future__ import annotations

import copy
from itertools import chain

from torch import nn

__all__ = ["copy_sharing_weights"]


def copy_sharing_weights(network: nn.Module) -> nn.Module:
    """A copy that shares parameters and buffers with the network; hooks inside the network stay behind.

    Raises:
        RuntimeError, TypeError: the network cannot be copied.
    """
    # deepcopy takes from its memo what is there
    twin = copy.deepcopy(network, {id(t): t for t in chain(network.parameters(), network.buffers())})
    for module in twin.modules():
        module._forward_hooks.clear()
        module._forward_pre_hooks.clear()
    return twin
