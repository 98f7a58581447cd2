# SPDX-License-Identifier: Apache-2.0
"""Continue a training that was cut off."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from ignite.engine import Engine, Events

from volseg.errors import UserError
from volseg.handlers.training_identity import training_identity
from volseg.storage.files import remove_leftovers
from volseg.weights import UNREADABLE, write_state

__all__ = ["TrainingCheckpointLoader", "is_first_process"]

logger = logging.getLogger(__name__)


class TrainingCheckpointLoader:
    """Save everything a training needs after every epoch, and take it up when the same training starts again.

    A training is the same if its data and hyperparameters are; the checkpoint of another one is put aside as
    ``checkpoint_aside.pt``. When a
    training completes, its checkpoint is renamed to ``checkpoint_completed.pt``: the next run starts over.

    Unlike MONAI's ``CheckpointSaver`` it writes to a temporary name first, so that a kill at any moment leaves the
    previous checkpoint whole.

    Args:
        path: of the checkpoint.
        objects: with ``state_dict`` and ``load_state_dict``: network, optimiser, schedules, :class:`BestWeights`.
        seed: of the training.
        resume: ``False`` starts over whatever is there.
        enabled: ``False`` neither saves nor takes anything up.
    """

    def __init__(
        self, path: str, objects: Mapping[str, Any], seed: int = 0, resume: bool = True, enabled: bool = True
    ) -> None:
        self.path = Path(path)
        self.objects = dict(objects)
        self.seed = seed
        self.resume = resume
        self.enabled = enabled
        self.identity = ""

    def attach(self, engine: Engine) -> None:
        """Attach to a trainer, after the handler that runs the validation."""
        if not self.enabled:
            return
        engine.add_event_handler(Events.STARTED, self.identify)
        engine.add_event_handler(Events.STARTED, self.load)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.save)
        engine.add_event_handler(Events.COMPLETED, self.complete)

    def identify(self, trainer: Any) -> None:
        """Read off the trainer, before anything is loaded, what makes this training what it is."""
        loader = trainer.state.dataloader
        self.identity = training_identity(
            {
                "seed": self.seed,
                "max_epochs": trainer.state.max_epochs,
                "epoch_length": trainer.state.epoch_length,
                "batch_size": loader.batch_size,
                "dataset": loader.dataset,
                "loss": trainer.loss_function,
                "inferer": trainer.inferer,
                "prepare_batch": trainer.prepare_batch,
                **{name: part for name, part in self.objects.items() if name != "best_weights"},
            }
        )

    def load(self, trainer: Engine) -> None:
        """Restore the state of the last whole epoch, if there is one.

        Raises:
            UserError: the checkpoint is damaged.
        """
        if is_first_process():
            remove_leftovers(self.path.parent)
        if not self.path.is_file():
            return
        if not self.resume:
            self._put_aside("--resume False")
            return
        try:
            state = torch.load(self.path, map_location="cpu", weights_only=True)
            identity = state["identity"]
        except UNREADABLE as error:
            raise UserError(f"{self.path}: damaged checkpoint; delete it or start over with --resume False") from error
        if identity != self.identity:
            self._put_aside("it belongs to a training with other data or hyperparameters")
            return
        for name, value in self.objects.items():
            value.load_state_dict(state["objects"][name])
        trainer.load_state_dict(
            {
                "epoch": state["epoch"],
                "epoch_length": trainer.state.epoch_length,
                "max_epochs": trainer.state.max_epochs,
            }
        )
        logger.info("continuing after epoch %d from %s", state["epoch"], self.path)

    def _put_aside(self, reason: str) -> None:
        aside = self.path.with_name(f"{self.path.stem}_aside{self.path.suffix}")
        logger.info("starting over, %s is put aside as %s: %s", self.path, aside.name, reason)
        if is_first_process():
            self.path.replace(aside)

    def save(self, trainer: Engine) -> None:
        """Write the state after an epoch."""
        if is_first_process():
            objects = {name: value.state_dict() for name, value in self.objects.items()}
            write_state(self.path, {"identity": self.identity, "epoch": trainer.state.epoch, "objects": objects})

    def complete(self, trainer: Engine) -> None:
        """Put the checkpoint of a completed training aside."""
        if is_first_process() and self.path.is_file():
            self.path.replace(self.path.with_name(f"{self.path.stem}_completed{self.path.suffix}"))


def is_first_process() -> bool:
    """Whether this is the only process of a training, or the one of several that writes files."""
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    return not distributed or torch.distributed.get_rank() == 0
