# SPDX-License-Identifier: Apache-2.0
"""Replace the noisy sections of a volume by interpolated ones (arXiv 2104.07961, interpolation network)."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from resunet_mitoem.interpolation import SectionInterpolationNetwork, from_unit_range, to_unit_range
from resunet_mitoem.noisy_sections import find_noisy_sections, plan_restoration
from volseg.errors import UserError

__all__ = ["interpolate_section", "restore_sections"]

logger = logging.getLogger(__name__)


def restore_sections(
    volume: Any,
    network: SectionInterpolationNetwork,
    noisy: Sequence[int] | None = None,
    output: Any = None,
    tile_size: int = 512,
    slab_depth: int = 8,
) -> Any:
    """Replace each noisy section by what the network makes of the nearest clean ones before and after it.

    The log says which section was replaced from which two, and which could not be.

    Args:
        volume: (D, H, W), an array or anything that is sliced like one. Whole numbers are scaled to [0, 1] for the
            network by the largest of their type, others must lie there.
        network: trained; it runs on the device it is on.
        noisy: indices along z; ``None`` looks for them (:func:`~resunet_mitoem.noisy_sections.find_noisy_sections`).
        output: where to write, of the volume's shape and type, for instance a Zarr array. It may be the volume itself:
            then only the restored sections are written. ``None`` makes a new array in memory.
        tile_size: side in pixels of the squares that the network works on at a time, plus its reach on every side; a
            multiple of the network's ``divisor``. The result is the same for all. 512 takes about 0.5 GB, 1024 about
            1.1 GB.
        slab_depth: sections to read at a time where all are read.

    Returns:
        ``output``, or the new array.

    Raises:
        UserError: a noisy section or an output that does not fit the volume.
        ValueError: ``tile_size`` is no multiple of the divisor.
    """
    depth = volume.shape[0]
    if output is None:
        output = np.empty(volume.shape, volume.dtype)
    if output.shape != volume.shape or output.dtype != volume.dtype:
        raise UserError(
            f"output: not like the volume. Received: {output.dtype} {tuple(output.shape)}. "
            f"Expected: {volume.dtype} {tuple(volume.shape)}"
        )
    if noisy is None:
        noisy = find_noisy_sections(volume, slab_depth=slab_depth)
    plan = plan_restoration(noisy, depth)
    if output is not volume:
        for start in range(0, depth, slab_depth):
            output[start : start + slab_depth] = volume[start : start + slab_depth]
    for section, before, after in plan:
        # slices: volumes on disk take no numbers
        first, second = (np.asarray(volume[index : index + 1])[0] for index in (before, after))
        output[section] = interpolate_section(network, first, second, tile_size)
        logger.info("Section %d replaced: interpolated from sections %d and %d", section, before, after)
    return output


@torch.no_grad()
def interpolate_section(
    network: SectionInterpolationNetwork, before: NDArray[Any], after: NDArray[Any], tile_size: int = 512
) -> NDArray[Any]:
    """Run the network on two sections, tile by tile.

    MONAI's sliding windows blend what they find at the edges of windows; here every tile has the network's whole reach
    around it, and the result does not depend on the tiles.

    Args:
        network: its training mode does not matter.
        before, after: (H, W), see :func:`restore_sections`.
        tile_size: see there.

    Returns:
        (H, W) in the sections' type.

    Raises:
        ValueError: ``tile_size`` is no multiple of the network's divisor.
    """
    divisor = network.divisor
    if tile_size < 1 or tile_size % divisor:
        raise ValueError(f"tile_size must be a multiple of {divisor}. Received: {tile_size}")
    # tiles that start at multiples of the divisor pool the same pixels together as the whole section
    margin = -(-network.reach // divisor) * divisor
    device = next(network.parameters()).device
    height, width = before.shape
    section = np.empty_like(before)
    for top in range(0, height, tile_size):
        for left in range(0, width, tile_size):
            y, x = max(top - margin, 0), max(left - margin, 0)
            window = slice(y, top + tile_size + margin), slice(x, left + tile_size + margin)
            neighbours = to_unit_range(np.stack([before[window], after[window]]))
            tile = network(torch.from_numpy(neighbours)[None].to(device))[0, 0].cpu().numpy()
            tile = tile[top - y : top - y + tile_size, left - x : left - x + tile_size]
            section[top : top + tile_size, left : left + tile_size] = from_unit_range(tile, section.dtype)
    return section
