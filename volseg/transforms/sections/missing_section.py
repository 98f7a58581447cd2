# SPDX-License-Identifier: Apache-2.0
"""Missing sections of a stack, an augmentation of Res-UNet's training (arXiv 2104.07961, released code)."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform, RandomizableTransform
from monai.utils import convert_to_dst_type, convert_to_tensor

__all__ = ["RandMissingSectiond"]


class RandMissingSectiond(RandomizableTransform, MapTransform):
    """Take random inner sections out of image and label together, so that objects jump where they were.

    The block gets shorter, so draw it ``num_sections`` deeper than the network's. Blocks without missing sections lose
    as many at their ends, half of them at each and an odd one at the last: all blocks leave with one shape. First and
    last section are never missing. The affine of a volume that has one stays, and there is no inverse. A call with
    ``randomize=False`` repeats the last draw.

    Args:
        keys: images and labels ``(C, D, H, W)`` of one depth.
        num_sections: sections to take out.
        prob: probability that they are inner ones.

    Raises:
        ValueError: no sections.
    """

    def __init__(
        self, keys: KeysCollection, num_sections: int = 2, prob: float = 0.5, allow_missing_keys: bool = False
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        RandomizableTransform.__init__(self, prob)
        if num_sections < 1:
            raise ValueError(f"num_sections must be 1 or more. Received: {num_sections}")
        self.num_sections = num_sections
        self.kept = torch.zeros(0, dtype=torch.int64)

    def randomize(self, data: int) -> None:
        """Draw the sections that stay into ``kept``.

        Args:
            data: D of the block, at least ``num_sections + 2``.
        """
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
        """Shorten, by a new draw or by the last one.

        Raises:
            ValueError: entries of different depths, or fewer sections than ``num_sections + 2``.
        """
        d = dict(data)
        keys = list(self.key_iterator(d))
        if not keys:
            return d
        depths = {d[key].shape[1] for key in keys}
        if len(depths) > 1:
            raise ValueError(f"entries {keys} must be of one depth. Received: {sorted(depths)} sections")
        depth = depths.pop()
        if depth < self.num_sections + 2:
            raise ValueError(f"blocks must have {self.num_sections + 2} sections or more. Received: {depth}")
        if randomize:
            self.randomize(depth)
        for key in keys:
            volume = convert_to_tensor(d[key], track_meta=False)
            d[key], *_ = convert_to_dst_type(volume[:, self.kept.to(volume.device)], dst=d[key])
        return d
