# SPDX-License-Identifier: Apache-2.0
"""Read random crops of volumes on disk, and nothing but the crop."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, Randomizable
from monai.utils import ensure_tuple

from volseg.data.open_volume import ChunkedVolume, open_chunked_volume
from volseg.data.resampling import NearestVolume, ResampledVolume
from volseg.data.volume_formats.voxel_size import checked_voxel_size
from volseg.transforms.load_em_volume import check_one_shape, shape_for_network, to_ids, to_tensor

__all__ = ["RandLoadImageCropd"]

OPEN_VOLUMES = 32


class RandLoadImageCropd(Randomizable, MapTransform):
    """Draw a position in a volume and read the crop there, the same for all keys.

    Memory holds the crop and the chunks it touches, whatever the size of the volume; formats that store whole sections
    also keep some of them decoded. All positions are equally likely. A volume smaller than the crop is extended by
    reflection. Up to 32 volumes stay open per process.

    Args:
        keys: entries with paths for :func:`volseg.data.open_volume.open_chunked_volume`; each becomes a
            ``MetaTensor`` ``(1, *spatial_size)``.
        spatial_size: of the crop, (D, H, W).
        label_keys: entries among ``keys`` that hold instance ids; they become int32, or int64 for larger ids.
        network_voxel_size_nm: volumes of another voxel size are brought to this one (z, y, x) before; images become
            float32 there, ids are those of the nearest voxels. Meta data ``network_shape`` says the new shape.

    Raises:
        UserError: a file cannot be read, a label does not hold integers, or shapes differ.
    """

    def __init__(
        self,
        keys: KeysCollection,
        spatial_size: Sequence[int],
        label_keys: KeysCollection = (),
        network_voxel_size_nm: Sequence[float] | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.spatial_size = tuple(spatial_size)
        self.label_keys = set(ensure_tuple(label_keys))
        self.network_voxel_size_nm = checked_voxel_size(network_voxel_size_nm)
        self.starts = [0, 0, 0]
        self._volumes: OrderedDict[str, ChunkedVolume] = OrderedDict()
        self._shapes: dict[str, tuple[int, int, int] | None] = {}  # at the network's voxel size, by image

    def randomize(self, data: Sequence[int]) -> None:
        """Draw the crop's first voxel in a volume of shape ``data``, (D, H, W)."""
        self.starts = [
            int(self.R.randint(max(0, n - size) + 1)) for n, size in zip(data, self.spatial_size, strict=True)
        ]

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        volumes = {key: self._open(str(d[key])) for key in self.key_iterator(d)}
        check_one_shape({str(d[key]): volume.shape for key, volume in volumes.items()})
        if not volumes:
            return d
        volumes = self._on_network_grid(volumes)
        self.randomize(next(iter(volumes.values())).shape)
        for key, volume in volumes.items():
            z, y, x = (slice(start, start + n) for start, n in zip(self.starts, self.spatial_size, strict=True))
            crop = volume[z, y, x]
            missing = [size - n for size, n in zip(self.spatial_size, crop.shape, strict=True)]
            if any(missing):
                crop = np.pad(crop, [(n // 2, n - n // 2) for n in missing], mode="reflect")
            tensor = to_ids(crop, str(d[key])) if key in self.label_keys else to_tensor(crop)
            meta: dict[str, Any] = {"filename_or_obj": str(d[key])}
            if isinstance(volume, ResampledVolume):
                meta["network_shape"] = volume.shape
            d[key] = MetaTensor(tensor[None], meta=meta)
        return d

    def _on_network_grid(self, volumes: Mapping[Hashable, ChunkedVolume]) -> dict[Hashable, ChunkedVolume]:
        """The volumes of a case at the network's voxel size; the images' files say theirs, labels may not."""
        images = [volume for key, volume in volumes.items() if key not in self.label_keys]
        for image in images[:1]:
            if str(image.path) not in self._shapes:
                self._shapes[str(image.path)] = shape_for_network(image, self.network_voxel_size_nm)
            if (shape := self._shapes[str(image.path)]) is not None:
                return {
                    key: (NearestVolume if key in self.label_keys else ResampledVolume)(volume, shape)
                    for key, volume in volumes.items()
                }
        return dict(volumes)

    def _open(self, path: str) -> ChunkedVolume:
        if path not in self._volumes:
            self._volumes[path] = open_chunked_volume(path)
        self._volumes.move_to_end(path)
        if len(self._volumes) > OPEN_VOLUMES:
            self._volumes.popitem(last=False)
        return self._volumes[path]
