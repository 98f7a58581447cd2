# SPDX-License-Identifier: Apache-2.0
"""Probabilities of one block of a volume that does not fit into memory.

A block sums every window that reaches into it, where :class:`~volseg.inferers.sliding_window.BlendedSlidingWindow` lays
the windows over the whole volume. So no block needs another one: they may be predicted in any order, anywhere and
again, and give what the whole volume gives. The price: a window that reaches into several blocks runs once in each of
them.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from math import prod
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from volseg.blockwise.block_grid import Region
from volseg.blockwise.grey_range import BYTES, GreyRange
from volseg.blockwise.zarr_array import VoxelArray, read_region
from volseg.data.blank import find_blank_in
from volseg.inferers.sliding_window import (
    BLANK_GREY,
    BlendedSlidingWindow,
    WindowAxis,
    gaussian_blend_weight,
    tissue_only,
)

__all__ = ["Activation", "predict_block", "to_bytes", "window_work"]

Activation: TypeAlias = Literal["sigmoid", "softmax", "none"]

_ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "sigmoid": torch.sigmoid_,
    "softmax": lambda logits: torch.softmax(logits, dim=0),
    "none": lambda probabilities: probabilities,
}


@torch.no_grad()
def predict_block(
    volume: VoxelArray,
    core: Region,
    network: Callable[[torch.Tensor], torch.Tensor],
    windows: BlendedSlidingWindow,
    grey_range: GreyRange = BYTES,
    activation: Activation = "sigmoid",
    device: torch.device | str = "cpu",
) -> torch.Tensor:
    """What ``windows`` would give for the whole volume, in one block.

    Outputs of the network are blended and then activated; with test-time augmentation, the mean of the activated
    predictions is taken.

    Memory: the block and the windows around it as they are stored, ``4 (K + 1)`` bytes per voxel of the block, twice
    ``4 K`` with test-time augmentation, and what the network takes for a window.

    Args:
        volume: of which the windows that reach into the block are read.
        core: the block, slices with a start and a stop inside the volume along z, y, x.
        network: takes ``(B, 1, d, h, w)`` and returns ``(B, K, d, h, w)``.
        windows: size, overlap, continuation, test-time augmentation and batch of the windows.
        grey_range: of the whole volume.
        activation: of the blended outputs; ``"none"`` for networks that return probabilities.
        device: of the network; blocks are summed there.

    Returns:
        float32 ``(K, d, h, w)`` of the block, on ``device``.

    Raises:
        ValueError: another activation.
        UserError: the volume cannot be read.
    """
    if activation not in _ACTIVATIONS:
        raise ValueError(f"activation must be one of {', '.join(_ACTIVATIONS)}, got {activation!r}")
    axes = windows.axes(volume.shape)
    source = _WindowSource(volume, axes, core, windows, grey_range)
    network = tissue_only(network) if grey_range.finds_blank else network
    mean: torch.Tensor | None = None
    for flipped, transposed in windows.augmentations:
        blended = _blended(source, axes, core, network, windows.batch_size, flipped, transposed, device)
        probabilities = _ACTIVATIONS[activation](blended)
        mean = probabilities if mean is None else mean.add_(probabilities)
    assert mean is not None
    return mean.div_(len(windows.augmentations)) if len(windows.augmentations) > 1 else mean


def to_bytes(probabilities: torch.Tensor) -> NDArray[np.uint8]:
    """Probabilities as they are stored: ``int(255 p)``."""
    return probabilities.mul(255).to(torch.uint8).cpu().numpy()


def window_work(shape: Sequence[int], block_shape: Sequence[int], windows: BlendedSlidingWindow) -> float:
    """How many times as many windows run in blocks as over the whole volume: what independent blocks cost.

    Args:
        shape: of the volume (D, H, W).
        block_shape: (D, H, W).
        windows: see :func:`predict_block`.
    """
    ratios = []
    for axis, block_size in zip(windows.axes(shape), block_shape, strict=True):
        starts = range(0, axis.size, block_size)
        in_blocks = sum(len(_starts(axis, slice(start, min(start + block_size, axis.size)))) for start in starts)
        ratios.append(in_blocks / len(axis.starts))
    return prod(ratios)


def _starts(axis: WindowAxis, core: slice, mirrored: bool = False) -> list[int]:
    """First voxels of the windows that reach into a block, of those of the mirrored axis where asked for."""
    starts = [axis.size - axis.length - start for start in axis.starts] if mirrored else axis.starts
    return [start for start in starts if start < core.stop and start + axis.length > core.start]


class _WindowSource:
    """The part of a volume that the windows of a block see, read once for all of them."""

    def __init__(
        self,
        volume: VoxelArray,
        axes: Sequence[WindowAxis],
        core: Region,
        windows: BlendedSlidingWindow,
        grey_range: GreyRange,
    ) -> None:
        mirrors = {dim - 2 for flipped, _ in windows.augmentations for dim in flipped}
        self._indices: list[dict[int, NDArray[np.intp]]] = []
        bounds = []
        for number, (axis, along) in enumerate(zip(axes, core, strict=True)):
            starts = {*_starts(axis, along), *(_starts(axis, along, True) if number in mirrors else ())}
            indices = {start: axis.reflected(start, start + axis.length).numpy() for start in starts}
            low = min(int(index.min()) for index in indices.values())
            bounds.append(slice(low, 1 + max(int(index.max()) for index in indices.values())))
            self._indices.append({start: index - low for start, index in indices.items()})
        seen = (bounds[0], bounds[1], bounds[2])
        self._voxels = read_region(volume, seen)
        self._blank = find_blank_in(volume, seen) if grey_range.finds_blank else None
        self._grey_range = grey_range

    def window(self, starts: Sequence[int]) -> torch.Tensor:
        """What the network sees in the window that begins there, continued by reflection where it leaves the volume."""
        values = self._grey_range(self._taken(self._voxels, starts))
        if self._blank is None:
            return values
        return values.masked_fill_(torch.from_numpy(self._taken(self._blank, starts)), BLANK_GREY)

    def _taken(self, voxels: NDArray[Any], starts: Sequence[int]) -> NDArray[Any]:
        for axis, start in enumerate(starts):
            voxels = voxels.take(self._indices[axis][start], axis)
        return voxels


def _blended(
    source: _WindowSource,
    axes: Sequence[WindowAxis],
    core: Region,
    network: Callable[[torch.Tensor], torch.Tensor],
    batch_size: int,
    flipped: tuple[int, ...],
    transposed: bool,
    device: torch.device | str,
) -> torch.Tensor:
    """The network's outputs in a block ``(K, d, h, w)``, blended."""
    weight = gaussian_blend_weight([axis.blended_length for axis in axes]).to(device)
    weight = weight.expand([axis.length for axis in axes])
    total: torch.Tensor | None = None
    weights = torch.zeros([along.stop - along.start for along in core], device=device)
    chosen = (_starts(axis, along, dim in flipped) for dim, (axis, along) in enumerate(zip(axes, core, strict=True), 2))
    # in the order of MONAI's windows, the same in every block: so are the sums, to the last bit
    order = itertools.product(*chosen)
    while batch := list(itertools.islice(order, batch_size)):
        inputs = torch.stack([source.window(starts) for starts in batch])[:, None].to(device)
        inputs = inputs.flip(flipped) if flipped else inputs
        outputs = network(inputs.transpose(3, 4).contiguous() if transposed else inputs)
        outputs = outputs.transpose(3, 4) if transposed else outputs
        outputs = outputs.flip(flipped) if flipped else outputs
        if total is None:
            total = torch.zeros((outputs.shape[1], *weights.shape), device=device)
        for starts, output in zip(batch, outputs, strict=True):
            in_block, in_window = _overlap(starts, axes, core)
            total[(slice(None), *in_block)] += output[(slice(None), *in_window)] * weight[in_window]
            weights[in_block] += weight[in_window]
    assert total is not None
    return total.div_(weights)


def _overlap(starts: Sequence[int], axes: Sequence[WindowAxis], core: Region) -> tuple[Region, Region]:
    """Where a window and a block overlap: in the block and in the window."""
    in_block, in_window = [], []
    for start, axis, along in zip(starts, axes, core, strict=True):
        low, high = max(start, along.start), min(start + axis.length, along.stop)
        in_block.append(slice(low - along.start, high - along.start))
        in_window.append(slice(low - start, high - start))
    return (in_block[0], in_block[1], in_block[2]), (in_window[0], in_window[1], in_window[2])
