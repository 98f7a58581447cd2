# SPDX-License-Identifier: Apache-2.0
"""Remove sections from a stack (Res-UNet, arXiv 2104.07961, released code)."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform, RandomizableTransform
from monai.utils import convert_to_dst_type, convert_to_tensor

from volseg.errors import UserError

__all__ = ["RandMissingSectiond"]


class RandMissingSectiond(RandomizableTransform, MapTransform):
    """Remove random inner sections from image and label together, so that objects jump there.

    The block gets shorter, so crop it ``num_sections`` deeper than the network's input. Otherwise as many sections are
    removed at the ends, half at each and an odd one at the last, so that all blocks have the same shape. The first and
    the last section are never among the inner ones. An affine stays unchanged, and there is no inverse. A call with
    ``randomize=False`` repeats the last draw.

    Args:
        keys: images and labels ``(C, D, H, W)`` of one depth.
        num_sections: number of sections to remove, >= 1.
        prob: probability of removing inner sections.

    Raises:
        ValueError: ``num_sections`` is less than 1.
    """

    def __init__(
        self, keys: KeysCollection, num_sections: int = 2, prob: float = 0.5, allow_missing_keys: bool = False
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        RandomizableTransform.__init__(self, prob)
        if num_sections < 1:
            raise ValueError(f"num_sections must be an integer >= 1, got {num_sections}")
        self.num_sections = num_sections
        self.kept = torch.zeros(0, dtype=torch.int64)

    def randomize(self, data: int) -> None:
        """Draw the sections to keep into ``kept``; ``data`` is D, at least ``num_sections + 2``."""
        super().randomize(None)
        if self._do_transform:
            inner = 1 + self.R.permutation(data - 2)[: self.num_sections]
            is_kept = torch.ones(data, dtype=torch.bool)
            is_kept[torch.from_numpy(inner)] = False
            self.kept = is_kept.nonzero()[:, 0]
        else:
            first = self.num_sections // 2
            self.kept = torch.arange(first, first + data - self.num_sections)

    def __call__(self, data: Mapping[Hashable, Any], randomize: bool = True) -> dict[Hashable, Any]:
        """Shorten all entries alike, with a new draw or the last one.

        Raises:
            ValueError: the entries differ in depth.
            UserError: they have fewer than ``num_sections + 2`` sections.
        """
        d = dict(data)
        keys = list(self.key_iterator(d))
        if not keys:
            return d
        depths = {d[key].shape[1] for key in keys}
        if len(depths) > 1:
            raise ValueError(f"entries {keys} must have one depth, got {sorted(depths)} sections")
        depth = depths.pop()
        if depth < self.num_sections + 2:
            raise UserError(
                f"blocks must have at least {self.num_sections + 2} sections, got {depth}; choose a larger spatial_size"
            )
        if randomize:
            self.randomize(depth)
        for key in keys:
            volume = convert_to_tensor(d[key], track_meta=False)
            d[key], *_ = convert_to_dst_type(volume[:, self.kept.to(volume.device)], dst=d[key])
        return d
