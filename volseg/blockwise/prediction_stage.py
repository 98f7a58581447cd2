# SPDX-License-Identifier: Apache-2.0
"""Prediction as a stage of a run by blocks: from a volume on disk to bytes of probabilities on disk."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from volseg.blockwise.block_grid import Block
from volseg.blockwise.grey_range import GreyRange
from volseg.blockwise.prediction import Activation, predict_block, to_bytes
from volseg.blockwise.stored_array import write_region
from volseg.blockwise.volume_opener import VolumeOpener
from volseg.blockwise.worker_network import WorkerNetwork
from volseg.data.blank import find_blank_in
from volseg.errors import UserError
from volseg.inferers.sliding_window import BlendedSlidingWindow, clear_blank

__all__ = ["PredictionStage"]


@dataclass(frozen=True)
class PredictionStage:
    """Predicts a block and writes its channels; called by :func:`volseg.blockwise.stages.run_stage`.

    Attributes:
        open_volume: of the volume (D, H, W).
        network, windows, grey_range, activation: see :func:`~volseg.blockwise.prediction.predict_block`.
        arrays: of each of the network's outputs the Zarr array (D, H, W) of bytes that it is written to; None leaves it
            out.

    Raises:
        UserError: the network has another number of outputs; a volume cannot be read or written.
    """

    open_volume: VolumeOpener
    network: WorkerNetwork
    windows: BlendedSlidingWindow
    grey_range: GreyRange
    activation: Activation
    arrays: tuple[Any, ...]

    def __call__(self, block: Block) -> dict[str, np.ndarray]:
        volume = self.open_volume()
        blank = torch.from_numpy(
            find_blank_in(volume, block.core) if self.grey_range.finds_blank else np.zeros(block.shape, bool)
        )
        if blank.all():
            predicted = torch.empty((len(self.arrays), *block.shape))
        else:
            network, device = self.network.build()
            predicted = predict_block(
                volume, block.core, network, self.windows, self.grey_range, self.activation, device
            )
        if len(predicted) != len(self.arrays):
            raise UserError(
                f"{self.network.target}: as many channels as outputs are needed. Received: {len(self.arrays)} for "
                f"{len(predicted)}. Name one for each."
            )
        if self.grey_range.finds_blank:
            clear_blank(predicted, blank.to(predicted.device))
        for channel, array in zip(predicted, self.arrays, strict=True):
            if array is not None:
                write_region(array, block.core, to_bytes(channel))
        return {"blank": np.array(int(blank.sum()))}
