# SPDX-License-Identifier: Apache-2.0
"""What an epoch has: random numbers that depend on it alone, and a progress bar that shows the loss."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from ignite.handlers import ProgressBar
from monai.data.utils import set_rnd
from monai.handlers import from_engine
from monai.utils import MAX_SEED
from torch.utils.data import Dataset, DistributedSampler

from volseg.transforms.augment_batch import AugmentBatch

__all__ = ["EpochSeed", "TrainingProgress"]


class EpochSeed:
    """Seed every random generator at the start of each epoch, so that a resumed training repeats an unbroken one.

    Shuffling, random transforms and dropout of epoch ``n`` draw from ``seed + n``, whatever was drawn before. A trainer
    that augments batches has its transforms seeded too, with numbers that no epoch's data set gets.

    Args:
        seed: of the training.
        dataset: whose random transforms are seeded too; their state is not the global one.
        sampler: in training with several processes, whose shuffling depends on the epoch it is told.
    """

    def __init__(self, seed: int, dataset: Dataset, sampler: DistributedSampler | None = None) -> None:
        self.seed = seed
        self.dataset = dataset
        self.sampler = sampler

    def attach(self, engine: Engine) -> None:
        """Attach to a trainer."""
        engine.add_event_handler(Events.EPOCH_STARTED, self)

    def __call__(self, engine: Engine) -> None:
        seed = self.seed + engine.state.epoch
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)  # all devices
        set_rnd(self.dataset, seed)
        prepare_batch = getattr(engine, "prepare_batch", None)  # of a trainer, not of every engine
        if isinstance(prepare_batch, AugmentBatch):
            prepare_batch.set_random_state(-seed % MAX_SEED)
        if self.sampler is not None:
            self.sampler.set_epoch(engine.state.epoch)


class TrainingProgress(ProgressBar):
    """Ignite's progress bar of an epoch with the loss of the last iteration beside it."""

    def attach(self, engine: Engine, *args: Any, **kwargs: Any) -> None:  # type: ignore[override]
        """Attach to a trainer."""
        super().attach(engine, *args, **{"output_transform": _loss, **kwargs})


def _loss(output: Any) -> dict[str, float]:
    return {"loss": from_engine("loss", first=True)(output)}
