# SPDX-License-Identifier: Apache-2.0
"""Grey values of electron microscopy as the network takes them, from 0 to 1."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from monai.utils import convert_to_numpy, convert_to_tensor

from resunet_mitoem.grey_range import SAMPLE, find_grey_range, tissue_range
from volseg.blockwise.grey_range import GreyRange
from volseg.data.blank import find_blank
from volseg.data.chunked_volume import open_chunked_volume
from volseg.inferers.sliding_window import BLANK_GREY

__all__ = ["ScaleGreyValuesd"]


class ScaleGreyValuesd(MapTransform):
    """Bring images from the percentiles 0.1 and 99.9 of their tissue to 0 and 1, and clip them.

    So it makes no difference how grey values are shifted, scaled and stored. Of an image that was read from a file the
    percentiles are those of the whole file, of a crop too: see :func:`resunet_mitoem.grey_range.find_grey_range`.

    Args:
        keys: images ``(1, D, H, W)``; each becomes float32 with its meta data.
        blank: what becomes of voxels that :func:`volseg.data.blank.find_blank` finds; NaN tells them to
            :class:`~volseg.inferers.sliding_window.BlendedSlidingWindow`.

    Raises:
        UserError: what :func:`resunet_mitoem.grey_range.find_grey_range` raises.
    """

    def __init__(self, keys: KeysCollection, blank: float = BLANK_GREY, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.blank = float(blank)
        self._ranges: dict[str, GreyRange] = {}

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            image = convert_to_tensor(d[key], track_meta=True)
            voxels = convert_to_numpy(image)
            blank = find_blank(voxels[0])
            path = image.meta.get("filename_or_obj")
            scale = _range_of_voxels(voxels[0][~blank]) if path is None else self._range_of_file(str(path))
            values = scale(voxels)
            values[0][torch.from_numpy(blank)] = self.blank
            d[key] = MetaTensor(values.to(image.device), meta=image.meta, applied_operations=image.applied_operations)
        return d

    def _range_of_file(self, path: str) -> GreyRange:
        """Found once: a training reads thousands of crops of a file."""
        if path not in self._ranges:
            self._ranges[path] = find_grey_range(open_chunked_volume(path))
        return self._ranges[path]


def _range_of_voxels(tissue: Any) -> GreyRange:
    # an odd step does not stay in a few columns, as rows mostly have even lengths
    return GreyRange(*tissue_range(tissue[:: -(-tissue.size // SAMPLE) | 1]))
