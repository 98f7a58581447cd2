# SPDX-License-Identifier: Apache-2.0
"""The voxel size that a training is about."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path

from volseg.data.datalist import DATALIST_NAME, load_datalist
from volseg.data.open_volume import open_chunked_volume
from volseg.data.volume_formats.voxel_size import VoxelSize
from volseg.errors import UserError

__all__ = ["dataset_voxel_size"]

logger = logging.getLogger(__name__)

# lengths that differ by less are no other voxel size to a network
_SIMILAR = 1.3


def dataset_voxel_size(dataset_dir: str | Path) -> list[float] | None:
    """The voxel size (z, y, x) in nm of the volumes of a dataset folder; None where none of them says it.

    Args:
        dataset_dir: with ``dataset.json``; empty for phantoms, whose recipe says it.

    Raises:
        UserError: two volumes, of whichever split, differ by more than a factor of 1.3 along an axis.
    """
    if not dataset_dir:
        return None
    sizes: dict[str, VoxelSize] = {}
    splits = [load_datalist(dataset_dir, split) for split in ("training", "validation")]
    if json.loads((Path(dataset_dir) / DATALIST_NAME).read_text(encoding="utf-8")).get("test"):
        splits.append(load_datalist(dataset_dir, "test"))
    for cases in splits:
        for case in cases:
            if (size := open_chunked_volume(case["image"], cache_bytes=0).voxel_size_nm) is not None:
                sizes[str(case["image"])] = size
    if not sizes:
        logger.warning("%s: no image says its voxel size; give it as --voxel_size_nm [30,8,8]", dataset_dir)
        return None
    (first, size), *others = sizes.items()
    for path, other in others:
        if any(abs(math.log(a / b)) > math.log(_SIMILAR) for a, b in zip(size, other, strict=True)):
            texts = ["x".join(f"{edge:g}" for edge in edges) for edges in (other, size)]
            raise UserError(
                f"{path}: volumes of a dataset must have one voxel size, got {texts[0]} nm, and {texts[1]} nm in "
                f"{first}; resample it, or correct it with prepare_data.json --voxel_size_nm"
            )
    return list(size)
