# SPDX-License-Identifier: Apache-2.0
"""Noise in a random cuboid, an augmentation of Res-UNet's training (arXiv 2104.07961, released code)."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data.utils import get_random_patch
from monai.transforms import MapTransform, RandomizableTransform
from monai.utils import convert_to_dst_type, convert_to_tensor

__all__ = ["RandCutNoised"]


class RandCutNoised(RandomizableTransform, MapTransform):
    """Add uniform noise to a random cuboid of an image and clip it there to [0, 1].

    Every voxel has noise of its own; the channels and entries of a case share it. Each place in the volume is equally
    likely. A call with ``randomize=False`` repeats the last draw.

    Args:
        keys: images ``(C, D, H, W)`` with values in [0, 1], on one grid.
        cuboid_fraction: edges of the cuboid as fractions of the volume's, in (0, 1]; at least one voxel.
        noise_amplitude: the noise is uniform from minus to plus this value.
        prob: probability of noise.

    Raises:
        ValueError: a fraction out of range.
    """

    def __init__(
        self,
        keys: KeysCollection,
        cuboid_fraction: float = 0.4,
        noise_amplitude: float = 0.3,
        prob: float = 0.75,
        allow_missing_keys: bool = False,
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        RandomizableTransform.__init__(self, prob)
        if not 0 < cuboid_fraction <= 1:
            raise ValueError(f"cuboid_fraction must lie in (0, 1]. Received: {cuboid_fraction}")
        self.cuboid_fraction = cuboid_fraction
        self.noise_amplitude = noise_amplitude
        self.cuboid: tuple[slice, ...] = ()
        self.noise = torch.zeros(0)

    def randomize(self, data: Sequence[int]) -> None:
        """Draw whether to add noise and, if so, the cuboid and its noise.

        Args:
            data: D, H, W of the image.
        """
        super().randomize(None)
        if self._do_transform:
            cuboid_size = [max(1, round(n * self.cuboid_fraction)) for n in data]
            self.cuboid = get_random_patch(data, cuboid_size, self.R)
            noise = self.R.uniform(-self.noise_amplitude, self.noise_amplitude, size=cuboid_size)
            self.noise = torch.from_numpy(noise).float()

    def __call__(self, data: Mapping[Hashable, Any], randomize: bool = True) -> dict[Hashable, Any]:
        """Add noise, by a new draw or by the last one."""
        d = dict(data)
        for i, key in enumerate(self.key_iterator(d)):
            if randomize and i == 0:
                self.randomize(d[key].shape[1:])
            if not self._do_transform:
                break
            image = convert_to_tensor(d[key], track_meta=False).clone()
            cuboid = image[:, *self.cuboid]
            cuboid.add_(self.noise.to(image.device)).clamp_(0, 1)
            d[key], *_ = convert_to_dst_type(image, dst=d[key])
        return d
