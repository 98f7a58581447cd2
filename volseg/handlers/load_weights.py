# SPDX-License-Identifier: Apache-2.0
"""Load weights when an engine starts."""

from __future__ import annotations

import logging
from pathlib import Path

from ignite.engine import Engine, Events
from torch import nn

from volseg.weights import RECORDED_SHA256, load_weights, read_record

__all__ = ["WeightsCheckpointLoader"]

logger = logging.getLogger(__name__)


class WeightsCheckpointLoader:
    """MONAI's ``CheckpointLoader`` for one network: says what weights run, or in one line why they cannot.

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
        logger.info("weights: %s%s", self.path, _origin(self.path))


def _origin(weights: str | Path) -> str:
    """What the JSON file beside the weights says of them, in brackets."""
    said = ", ".join(f"{key} {value}" for key, value in read_record(weights).items() if key != RECORDED_SHA256)
    return f" ({said})" if said else ""
