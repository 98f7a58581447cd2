# SPDX-License-Identifier: Apache-2.0
"""Load weights when an engine starts."""

from __future__ import annotations

from ignite.engine import Engine, Events
from torch import nn

from volseg.weights import load_weights

__all__ = ["LoadWeights"]


class LoadWeights:
    """MONAI's ``CheckpointLoader`` for one network, with one line where the file is missing or does not fit.

    Args:
        path: state dict.
        network: that takes it.
    """

    def __init__(self, path: str, network: nn.Module) -> None:
        self.path = path
        self.network = network

    def attach(self, engine: Engine) -> None:
        """Attach to an evaluator or trainer."""
        engine.add_event_handler(Events.STARTED, self)

    def __call__(self, engine: Engine) -> None:
        load_weights(self.path, self.network)
