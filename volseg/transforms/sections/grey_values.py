# SPDX-License-Identifier: Apache-2.0
"""Base classes of random transforms that change grey values."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data.utils import get_random_patch
from monai.transforms import MapTransform, RandomizableTransform
from monai.utils import convert_to_dst_type, convert_to_tensor

__all__ = ["RandCuboidGreyValuesd", "RandGreyValuesd"]


class RandGreyValuesd(RandomizableTransform, MapTransform):
    """Base class of random transforms that change images ``(C, D, H, W)`` but not their labels.

    A subclass extends :meth:`randomize`, which receives the size (D, H, W), and changes one image in :meth:`change`.
    All entries of a case share the draw. A call with ``randomize=False`` repeats the last draw.

    Args:
        keys: images on one grid.
        prob: probability of a change.
    """

    def __init__(self, keys: KeysCollection, prob: float, allow_missing_keys: bool = False) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        RandomizableTransform.__init__(self, prob)

    @abstractmethod
    def change(self, image: torch.Tensor) -> torch.Tensor:
        """Change ``(C, D, H, W)`` as drawn and return it; ``image`` is a copy that may be changed in place."""

    def __call__(self, data: Mapping[Hashable, Any], randomize: bool = True) -> dict[Hashable, Any]:
        """Change all images alike, with a new draw or the last one."""
        d = dict(data)
        for i, key in enumerate(self.key_iterator(d)):
            if randomize and i == 0:
                self.randomize(d[key].shape[1:])
            if not self._do_transform:
                break
            changed = self.change(convert_to_tensor(d[key], track_meta=False).clone())
            d[key], *_ = convert_to_dst_type(changed, dst=d[key])
        return d


class RandCuboidGreyValuesd(RandGreyValuesd):
    """Base class of random transforms that change a random cuboid; all positions are equally likely.

    Args:
        keys: images on one grid.
        cuboid_fraction: edge lengths of the cuboid as a fraction of the volume's, in (0, 1]; at least one voxel.
        prob: probability of a change.

    Raises:
        ValueError: the fraction is out of range.
    """

    def __init__(
        self, keys: KeysCollection, cuboid_fraction: float, prob: float, allow_missing_keys: bool = False
    ) -> None:
        super().__init__(keys, prob, allow_missing_keys)
        if not 0 < cuboid_fraction <= 1:
            raise ValueError(f"cuboid_fraction must be in (0, 1], got {cuboid_fraction}")
        self.cuboid_fraction = cuboid_fraction
        self.cuboid: tuple[slice, ...] = ()

    def randomize(self, data: Sequence[int]) -> None:
        """Decide whether to change the image and, if so, draw the cuboid; ``data`` is (D, H, W)."""
        super().randomize(None)
        if self._do_transform:
            cuboid_size = [max(1, round(n * self.cuboid_fraction)) for n in data]
            self.cuboid = get_random_patch(data, cuboid_size, self.R)
