# SPDX-License-Identifier: Apache-2.0
"""Keep the weights that validate best."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch.distributed
from ignite.engine import Engine, Events
from monai.engines import Trainer
from torch import nn

from volseg.weights import save_weights

__all__ = ["BestWeights"]

logger = logging.getLogger(__name__)


class BestWeights:
    """Write the weights whenever validation's key metric rises above all epochs before.

    Attached to the evaluator and to the trainer: a training without validation data saves its last weights. Weights
    that an earlier training left at the same place are kept as ``model_previous.pt``. Its state belongs into the
    checkpoint of the training; otherwise the first epoch after a resume would pass for the best.

    Args:
        path: of the weights, a plain state dict.
        network: whose weights are saved, not wrapped for distributed training.
        record: what the JSON file beside the weights says of them; the epoch and the metric are added.
    """

    def __init__(self, path: str, network: nn.Module, record: Mapping[str, Any]) -> None:
        self.path = Path(path)
        self.network = network
        self.record = dict(record)
        self.best_metric: float | None = None
        self.saved = False
        self.epoch = 0

    def attach(self, engine: Engine) -> None:
        """Attach to the evaluator or to the trainer."""
        if isinstance(engine, Trainer):
            engine.add_event_handler(Events.EPOCH_STARTED, self._note_epoch)
            engine.add_event_handler(Events.COMPLETED, self._without_validation)
        else:
            engine.add_event_handler(Events.EPOCH_COMPLETED, self._validated)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed training must know."""
        return {"best_metric": self.best_metric, "saved": self.saved}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up :meth:`state_dict`."""
        self.best_metric, self.saved = state["best_metric"], state["saved"]

    def _note_epoch(self, trainer: Engine) -> None:
        self.epoch = trainer.state.epoch

    def _validated(self, evaluator: Engine) -> None:
        state: Any = evaluator.state
        metric = float(state.metrics[state.key_metric_name])
        # NaN, a metric of nothing, is no best: no later epoch would rise above it
        if not math.isnan(metric) and (self.best_metric is None or metric > self.best_metric):
            self.best_metric = metric
            self._save({state.key_metric_name: metric})

    def _without_validation(self, trainer: Engine) -> None:
        if self.best_metric is None:
            self._save({})

    def _save(self, metric: Mapping[str, float]) -> None:
        if torch.distributed.is_available() and torch.distributed.is_initialized() and torch.distributed.get_rank() > 0:
            return
        if not self.saved:
            _keep_previous(self.path)
        self.saved = True
        save_weights(self.path, self.network, {**self.record, "epoch": self.epoch, **metric})
        logger.info("saved %s (epoch %d)", self.path, self.epoch)


def _keep_previous(path: Path) -> None:
    for file in (path, path.with_suffix(".json")):
        if file.is_file():
            file.replace(file.with_name(f"{path.stem}_previous{file.suffix}"))
