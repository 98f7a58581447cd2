# SPDX-License-Identifier: Apache-2.0
"""Labels that were decoded on the grid of a network, written on the grid of their volume block by block."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from volseg.blockwise.block_grid import Block
from volseg.blockwise.volume_opener import VolumeOpener
from volseg.blockwise.zarr_array import VoxelArray, write_region
from volseg.instances.decoding import Decoding
from volseg.instances.original_grid import labels_in_volume
from volseg.instances.table import extents

__all__ = ["VolumeLabels"]


@dataclass(frozen=True)
class VolumeLabels:
    """Writes what :func:`volseg.instances.original_grid.labels_in_volume` gives; memory is that.

    Args:
        labels: on the network's grid, without small objects, uint32 (D, H, W).
        mask: probability of being inside an object, on the network's grid.
        decoding: how the labels were decoded.
        open_volume: opens the volume.
        level: the Zarr array to write to, uint32, of the volume's shape.

    The manifest gets what :func:`volseg.instances.table.extents` counts in the block.
    """

    labels: VoxelArray
    mask: VoxelArray
    decoding: Decoding
    open_volume: VolumeOpener
    level: Any

    def __call__(self, block: Block) -> Mapping[str, np.ndarray]:
        volume = self.open_volume.on_own_grid()
        voxels = labels_in_volume(self.labels, self.mask, self.decoding, volume, block.core)
        write_region(self.level, block.core, voxels)
        return extents(voxels, [along.start for along in block.core])._asdict()
