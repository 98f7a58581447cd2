# SPDX-License-Identifier: Apache-2.0
"""Keep the weights that validate best."""

from __future__ import annotations

import json
import logging
import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.engines import Trainer
from torch import nn

from volseg.errors import UserError
from volseg.handlers.training_checkpoint import is_first_process
from volseg.storage.files import atomic_path
from volseg.weights import load_weights, read_record, save_weights

__all__ = ["BestWeights"]

logger = logging.getLogger(__name__)


class BestWeights:
    """Write the weights whenever validation's key metric rises above all epochs before; install them at the end.

    Attached to the evaluator and to the trainer. A training that is cut off changes no installed weights. Weights that
    are installed already are validated at the end on the same cases; they stay unless the new ones are better. They
    also stay where the two cannot be compared: without validation data, or with other ``settings``. A validation before
    the first epoch, of the weights that a second stage starts from, sets the bar: if no epoch rises above it, what is
    installed stays.

    The weights that were installed before any training, those a bundle was released with, are kept as
    ``model_released.pt``. Its state belongs into the checkpoint of the training; otherwise the first epoch after a
    resume would pass for the best.

    Args:
        path: of the best weights so far, a plain state dict.
        network: whose weights are saved, not wrapped for distributed training.
        record: what the JSON file beside the weights says of them; the epoch and the metric are added.
        installed: where the weights go when the training completes; ``None``: nowhere.
        dtype: of the weights in the file; see :func:`volseg.weights.save_weights`.
        settings: keys of ``record`` that must agree for weights to be compared.
        install: whether the new weights replace installed ones in any case.
        keep_last: keep the weights of the last epoch, however they validate: where validation cases are not what the
            weights are for.
    """

    def __init__(
        self,
        path: str,
        network: nn.Module,
        record: Mapping[str, Any],
        installed: str | None,
        dtype: torch.dtype | None = None,
        settings: Sequence[str] = (),
        install: bool = False,
        keep_last: bool = False,
    ) -> None:
        self.path = Path(path)
        self.network = network
        self.record = dict(record)
        self.installed = Path(installed) if installed else None
        self.dtype = dtype
        self.settings = settings
        self.install = install
        self.keep_last = keep_last
        self.evaluator: Any = None
        self.bar: float | None = None  # of the weights that the training began with, where these were validated
        self.best_metric: float | None = None
        self.best_epoch = 0  # of the weights at ``path``; 0: none were written
        self.epoch = 0

    def attach(self, engine: Engine) -> None:
        """Attach to the evaluator or to the trainer."""
        if isinstance(engine, Trainer):
            engine.add_event_handler(Events.EPOCH_STARTED, self._note_epoch)
            engine.add_event_handler(Events.ITERATION_COMPLETED, self._check_loss)
            engine.add_event_handler(Events.COMPLETED, self._complete)
        else:
            self.evaluator = engine
            engine.add_event_handler(Events.EPOCH_COMPLETED, self._validated)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed training must know."""
        return {"best_metric": self.best_metric, "best_epoch": self.best_epoch}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up :meth:`state_dict`."""
        self.best_metric = state["best_metric"]
        self.best_epoch = state["best_epoch"]

    def _note_epoch(self, trainer: Engine) -> None:
        self.epoch = trainer.state.epoch

    def _check_loss(self, trainer: Engine) -> None:
        """End a training that diverged before its state replaces that of the last epoch.

        Raises:
            UserError: the loss is not finite.
        """
        output: Any = trainer.state.output
        loss = output[0].get("loss") if isinstance(output, list) and output else None
        if loss is not None and not math.isfinite(loss):
            raise UserError(
                f"the loss became {float(loss):g} in epoch {self.epoch}: the training diverged; lower "
                "--learning_rate or set --amp False"
                + (f", or use the weights of epoch {self.best_epoch}, {self.path}" if self.best_epoch else "")
            )

    def _validated(self, evaluator: Any) -> None:
        metric = self._metric()
        if math.isnan(metric):  # of nothing: no later epoch would rise above it
            return
        if not self.epoch:
            self.bar = metric
        if self.keep_last or self.best_metric is None or metric > self.best_metric:
            self.best_metric = metric
            if self.epoch:
                self._save({evaluator.state.key_metric_name: metric})

    def _metric(self) -> float:
        return float(self.evaluator.state.metrics[self.evaluator.state.key_metric_name])

    def _complete(self, trainer: Engine) -> None:
        if self.best_metric is None:
            logger.warning("nothing was validated: the last weights are kept unseen; give validation cases")
        if self.best_metric is None or (self.keep_last and self.best_epoch < self.epoch):
            self._save({})
        if self.installed is None:
            return
        is_worse = self.bar is not None and not (self.best_metric or 0) > self.bar
        if not self.best_epoch or (is_worse and not self.install):
            logger.info("no epoch validated better than the weights it began with; %s stays as it is", self.installed)
            return
        if self.best_metric == 0:
            logger.warning(
                "%s is 0 after every epoch: the network finds nothing in the validation cases; train longer, or check "
                "the labels and --learning_rate",
                self.evaluator.state.key_metric_name,
            )
        reason = None if self.install or not self.installed.is_file() else self._reason_to_keep(self.installed)
        if reason:
            logger.warning("%s stays as it is: %s. --install True replaces it by %s", self.installed, reason, self.path)
        elif is_first_process():
            _install(self.path, self.installed)

    def _reason_to_keep(self, installed: Path) -> str | None:
        """Validate the installed weights on the same cases, and say why they stay if they do."""
        if self.best_metric is None:
            return "nothing was validated"
        values = read_record(installed)
        ours = json.loads(json.dumps(self.record))  # tuples become lists
        if other := [key for key in self.settings if values.get(key, ours[key]) != ours[key]]:
            return f"it has another {' and '.join(other)}, so that validation cannot compare the two"
        trained = {key: value.clone() for key, value in self.network.state_dict().items()}
        best = self.best_metric, self.best_epoch
        self.best_metric = math.inf  # what follows is no epoch of this training
        try:
            load_weights(installed, self.network)
            self.evaluator.run(self.epoch)
            metric = self._metric()
        except UserError as error:
            return str(error)
        finally:
            self.best_metric, self.best_epoch = best
            self.network.load_state_dict(trained)
        name = self.evaluator.state.key_metric_name
        logger.info("%s: %.4f of the installed weights, %.4f of the new ones", name, metric, self.best_metric)
        if metric < self.best_metric:
            return None
        return f"on the same cases its {name} is {metric:.4f}, that of the new weights {self.best_metric:.4f}"

    def _save(self, metric: Mapping[str, float]) -> None:
        self.best_epoch = self.epoch
        if is_first_process():
            save_weights(self.path, self.network, {**self.record, "epoch": self.epoch, **metric}, self.dtype)
            what = "weights of the last epoch" if self.keep_last or not metric else "best weights so far"
            logger.info("%s: epoch %d, %s", what, self.epoch, self.path)


def _install(path: Path, installed: Path) -> None:
    released = installed.with_name(f"{installed.stem}_released{installed.suffix}")
    if installed.is_file() and not released.is_file():
        _copy(installed, released)
        logger.info("the weights that were there before are now %s", released)
    _copy(path, installed)
    logger.info("installed %s", installed)


def _copy(source: Path, target: Path) -> None:
    """Copy weights and the JSON file beside them, each whole or not at all."""
    for suffix in (".json", source.suffix):
        if source.with_suffix(suffix).is_file():
            with atomic_path(target.with_suffix(suffix)) as temporary:
                shutil.copyfile(source.with_suffix(suffix), temporary)
