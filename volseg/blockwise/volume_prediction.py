# SPDX-License-Identifier: Apache-2.0
"""Prediction of a volume block by block: from a volume on disk to bytes of probabilities on disk."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from distributed import Client

from volseg.blockwise.block_grid import DEFAULT_BLOCK_SHAPE, Block, BlockGrid
from volseg.blockwise.finished_blocks import BlockArray, FinishedBlocks
from volseg.blockwise.grey_range import BYTES, GreyRange
from volseg.blockwise.label_pyramid import AXES, pyramid_levels, write_pyramid_metadata
from volseg.blockwise.prediction import Activation, predict_block, to_bytes, window_work
from volseg.blockwise.stages import run_stage
from volseg.blockwise.volume_opener import VolumeOpener
from volseg.blockwise.worker_network import WorkerNetwork
from volseg.blockwise.zarr_array import (
    block_chunks,
    open_array,
    open_or_create_array,
    remove_partial_chunks,
    write_region,
)
from volseg.console.option_checks import three_whole_numbers
from volseg.data.blank import find_blank_in
from volseg.data.volume_formats.voxel_size import VoxelSize
from volseg.errors import UserError
from volseg.inferers.sliding_window import BlendedSlidingWindow, clear_blank

__all__ = ["VolumePrediction", "predict_blockwise"]

_STAGE = "prediction"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class VolumePrediction:
    """A volume and everything that its probabilities depend on; can be pickled.

    Attributes:
        open_volume: opens the volume, a path or URL.
        network: any network that takes one channel of grey values: Res-UNet's, PDV-Net, V-Net.
        windows: size, overlap, continuation and test-time augmentation.
        block_shape: voxels of a block (D, H, W). A window at the border of a block runs in each block it reaches into,
            see :func:`volseg.blockwise.prediction.window_work`.
        channels: names of the network's outputs; None leaves one out, such as the background.
        grey_range: of the whole volume.
        activation: ``"sigmoid"``, ``"softmax"`` or, where the network returns probabilities, ``"none"``.
        voxel_size_nm: of the volume (z, y, x), for the metadata of what is written.

    Raises:
        UserError: an invalid ``block_shape``; the volume cannot be opened.
    """

    open_volume: VolumeOpener
    network: WorkerNetwork
    windows: BlendedSlidingWindow
    block_shape: Sequence[int] = DEFAULT_BLOCK_SHAPE
    channels: Sequence[str | None] = ("mask", "boundary")
    grey_range: GreyRange = BYTES
    activation: Activation = "sigmoid"
    voxel_size_nm: Sequence[float] | None = None

    def __post_init__(self) -> None:
        block_shape = three_whole_numbers("block_shape", self.block_shape, 1, "[64,512,512]")
        object.__setattr__(self, "block_shape", block_shape)

    @property
    def grid(self) -> BlockGrid:
        """The blocks of the volume, as the network sees it."""
        return BlockGrid(self.open_volume().shape, self.block_shape)

    @property
    def origin_nm(self) -> VoxelSize | None:
        """Where the first voxel of the volume lies (z, y, x), if its file says."""
        return self.open_volume.source().origin_nm

    def network_grid_nm(self) -> tuple[Sequence[float] | None, Sequence[float] | None]:
        """Size and centre of the first voxel that the network sees (z, y, x), as far as they are known."""
        if self.voxel_size_nm is None or self.open_volume.network_shape is None:
            return self.voxel_size_nm, self.origin_nm
        shape = self.open_volume.source().shape
        steps = [n / new for n, new in zip(shape, self.open_volume.network_shape, strict=True)]
        origin = self.origin_nm or (0.0, 0.0, 0.0)
        return (
            [edge * step for edge, step in zip(self.voxel_size_nm, steps, strict=True)],
            [at + edge * (step - 1) / 2 for at, edge, step in zip(origin, self.voxel_size_nm, steps, strict=True)],
        )

    def parameters(self) -> dict[str, Any]:
        """What the probabilities depend on, as JSON holds it."""
        return {
            **self.open_volume.parameters(),
            "block_shape": self.grid.block_shape,
            "window": self.windows.window,
            "overlap": self.windows.overlap,
            "padding": self.windows.padding,
            "divisor": self.windows.divisor,
            "predictions": len(self.windows.augmentations),
            "channels": list(self.channels),
            "grey_range": asdict(self.grey_range),
            "activation": self.activation,
            **self.network.parameters(),
        }

    def is_stored(self, output: str | Path) -> bool:
        """Whether :func:`predict_blockwise` has finished every block in a folder."""
        return len(_manifest(output).numbers(_STAGE)) == len(self.grid)

    def stored(self, output: str | Path, channel: str) -> BlockArray:
        """The bytes (D, H, W) of a channel that :func:`predict_blockwise` wrote to a folder, for reading."""
        return BlockArray(open_array(f"{_image(output, channel)}/0"), self.grid, _manifest(output), _STAGE)

    def blank_fraction(self, output: str | Path) -> float:
        """The part of the volume that is no tissue, as :func:`predict_blockwise` found it in every block."""
        finished = _manifest(output)
        n_blank = sum(int(finished.read(_STAGE, block, "blank")[0]) for block in self.grid)
        return n_blank / math.prod(self.grid.shape)


def predict_blockwise(
    prediction: VolumePrediction, output: str | Path, client: Client | None = None, progress: bool = True
) -> dict[str, str]:
    """Predict a volume block by block into OME-Zarr images of bytes, one for each output of the network.

    They hold ``int(255 p)`` of what :func:`volseg.blockwise.prediction.predict_block` gives, which is what the windows
    would give for the whole volume. A run that was stopped resumes with what is missing.

    Args:
        prediction: of the volume.
        output: folder, path or URL of any storage that fsspec knows.
        client: of a Dask cluster whose workers reach volume, weights and output; None works in this process.
        progress: show a bar of the blocks.

    Returns:
        for each channel's name the path or URL of its image, ``NAME.ome.zarr``.

    Raises:
        UserError: another run is at work there or had other parameters, or a block fails: one line that names it.
    """
    grid, finished = prediction.grid, _manifest(output)
    images = {name: _image(output, name) for name in prediction.channels if name is not None}
    with finished.lock(prediction.parameters()):
        is_begun, chunks = bool(finished.numbers(_STAGE)), block_chunks(grid.block_shape)
        arrays = {
            name: open_or_create_array(f"{image}/0", grid.shape, np.uint8, chunks, is_begun, dimension_names=AXES)
            for name, image in images.items()
        }
        if not prediction.is_stored(output):
            work = window_work(grid.shape, grid.block_shape, prediction.windows)
            logger.info("prediction: %.2f times the windows of the whole volume", work)
        targets = [None if name is None else arrays[name] for name in prediction.channels]
        run_stage(client, _STAGE, partial(_predict_block, prediction, targets), grid, finished, progress)
        size_nm, origin_nm = prediction.network_grid_nm()
        for image in images.values():
            levels = pyramid_levels(grid.shape, None, max(grid.shape))
            write_pyramid_metadata(image, levels, size_nm, origin_nm=origin_nm)
            remove_partial_chunks(image)
    return images


def _predict_block(prediction: VolumePrediction, targets: Sequence[Any], block: Block) -> dict[str, np.ndarray]:
    """Predict a block and write each output of the network to its Zarr array (D, H, W), unless that is None."""
    volume, finds_blank = prediction.open_volume(), prediction.grey_range.finds_blank
    blank = torch.from_numpy(find_blank_in(volume, block.core) if finds_blank else np.zeros(block.shape, bool))
    if blank.all():
        predicted = torch.empty((len(targets), *block.shape))
    else:
        network, device = prediction.network.build()
        predicted = predict_block(
            volume, block.core, network, prediction.windows, prediction.grey_range, prediction.activation, device
        )
    if len(predicted) != len(targets):
        raise UserError(
            f"{prediction.network.name}: channels must name each of the {len(predicted)} outputs, got {len(targets)}"
        )
    if finds_blank:
        clear_blank(predicted, blank.to(predicted.device))
    for channel, array in zip(predicted, targets, strict=True):
        if array is not None:
            write_region(array, block.core, to_bytes(channel))
    return {"blank": np.array(int(blank.sum()))}


def _manifest(output: str | Path) -> FinishedBlocks:
    return FinishedBlocks(f"{output}/finished")


def _image(output: str | Path, channel: str) -> str:
    return f"{output}/{channel}.ome.zarr"
