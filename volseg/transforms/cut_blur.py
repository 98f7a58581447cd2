# SPDX-License-Identifier: Apache-2.0
"""Lower resolution in a random cuboid: CutBlur (arXiv 2004.00448) as Res-UNet's training uses it (arXiv 2104.07961)."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch.nn.functional as F
from monai.config import KeysCollection
from monai.data.utils import get_random_patch
from monai.transforms import MapTransform, RandomizableTransform
from monai.utils import convert_to_dst_type, convert_to_tensor

__all__ = ["RandCutBlurd"]


class RandCutBlurd(RandomizableTransform, MapTransform):
    """Sample the sections of a random cuboid down and back up, so that pixels become blocks of the mean grey.

    Down by linear interpolation with an antialiasing filter, up by nearest neighbour; the resolution along z stays.
    Each place in the volume is equally likely. A call with ``randomize=False`` repeats the last draw.

    Args:
        keys: images ``(C, D, H, W)`` with values in [0, 1], on one grid.
        cuboid_fraction: edges of the cuboid as fractions of the volume's, in (0, 1]; at least one voxel.
        downsampling_range: lowest and highest factor, 1 or more; a real number between them is drawn for y and x.
        prob: probability of a blur.

    Raises:
        ValueError: a fraction or a factor out of range.
    """

    def __init__(
        self,
        keys: KeysCollection,
        cuboid_fraction: float = 0.4,
        downsampling_range: Sequence[float] = (2.0, 8.0),
        prob: float = 0.5,
        allow_missing_keys: bool = False,
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        RandomizableTransform.__init__(self, prob)
        lowest, highest = downsampling_range
        if not 0 < cuboid_fraction <= 1:
            raise ValueError(f"cuboid_fraction must lie in (0, 1]. Received: {cuboid_fraction}")
        if not 1 <= lowest <= highest:
            raise ValueError(f"downsampling_range must ascend from 1 or more. Received: {tuple(downsampling_range)}")
        self.cuboid_fraction = cuboid_fraction
        self.downsampling_range = (lowest, highest)
        self.cuboid: tuple[slice, ...] = ()
        self.downsampling = 1.0

    def randomize(self, data: Sequence[int]) -> None:
        """Draw whether to blur and, if so, the cuboid and the factor.

        Args:
            data: D, H, W of the image.
        """
        super().randomize(None)
        if self._do_transform:
            cuboid_size = [max(1, round(n * self.cuboid_fraction)) for n in data]
            self.cuboid = get_random_patch(data, cuboid_size, self.R)
            self.downsampling = self.R.uniform(*self.downsampling_range)

    def __call__(self, data: Mapping[Hashable, Any], randomize: bool = True) -> dict[Hashable, Any]:
        """Blur, by a new draw or by the last one."""
        d = dict(data)
        for i, key in enumerate(self.key_iterator(d)):
            if randomize and i == 0:
                self.randomize(d[key].shape[1:])
            if not self._do_transform:
                break
            image = convert_to_tensor(d[key], track_meta=False).clone()
            sections = image[:, *self.cuboid]  # (C, d, h, w): sections are the channels of a 2-D interpolation
            full_size = sections.shape[2:]
            small_size = [max(1, round(n / self.downsampling)) for n in full_size]
            small = F.interpolate(sections, small_size, mode="bilinear", antialias=True)
            # the filter's weights add up to 1 but for rounding
            sections[:] = F.interpolate(small.clamp_(0, 1), full_size, mode="nearest-exact")
            d[key], *_ = convert_to_dst_type(image, dst=d[key])
        return d
