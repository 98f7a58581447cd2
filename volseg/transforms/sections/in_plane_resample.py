# SPDX-License-Identifier: Apache-2.0
"""Resample sections in their plane, images and instance labels together."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from monai.config import KeysCollection
from monai.transforms import MapTransform, RandomizableTransform
from monai.utils import convert_to_dst_type, convert_to_tensor, ensure_tuple

__all__ = [
    "RandInPlaned",
    "linear_positions",
    "pixel_positions",
    "resample_in_plane",
    "rotation_matrix",
    "size_with_margins",
]


class RandInPlaned(RandomizableTransform, MapTransform):
    """Base class of random transforms that move sections in their plane.

    A subclass draws in :meth:`randomize`, which receives the size (D, H, W), and either sets ``positions`` or overrides
    :meth:`move`. Numbers are drawn on the host, so they are the same on all devices; positions are computed on
    ``device``, that of the volumes. The geometry in the metadata stays that of the input, and there is no inverse. A
    call with ``randomize=False`` repeats the last draw.

    Args:
        keys: entries ``(1, D, H, W)`` on one grid.
        label_keys: entries among ``keys`` that hold instance ids and keep their dtype. The others are images and
            become float32.
        prob: probability of the transform.
    """

    def __init__(
        self, keys: KeysCollection, label_keys: KeysCollection, prob: float, allow_missing_keys: bool = False
    ) -> None:
        if unknown := set(ensure_tuple(label_keys)) - set(ensure_tuple(keys)):
            raise ValueError(f"label_keys must be among keys {ensure_tuple(keys)}, got {sorted(map(str, unknown))}")
        MapTransform.__init__(self, keys, allow_missing_keys)
        RandomizableTransform.__init__(self, prob)
        self.label_keys = ensure_tuple(label_keys)
        self.device = torch.device("cpu")
        self.positions = torch.empty(2, 0, 0)

    def move(self, volume: torch.Tensor, nearest: bool) -> torch.Tensor:
        """Move ``(1, D, H, W)`` as drawn; ``nearest`` is True for instance ids."""
        return resample_in_plane(volume, self.positions, nearest)

    def margin_pixels(self, size: Sequence[int]) -> tuple[int, int]:
        """Return how far beyond a central block of ``size`` (H, W) the transform reaches, along y and x."""
        return 0, 0

    def __call__(self, data: Mapping[Hashable, Any], randomize: bool = True) -> dict[Hashable, Any]:
        """Move all entries alike, with a new draw or the last one.

        Raises:
            ValueError: the entries differ in size.
        """
        d = dict(data)
        keys = list(self.key_iterator(d))
        if not keys:
            return d
        volumes = [convert_to_tensor(d[key], track_meta=False) for key in keys]
        sizes = {tuple(v.shape[1:]) for v in volumes}
        if len(sizes) > 1:
            raise ValueError(f"entries {keys} must lie on one grid, got sizes {sorted(sizes)}")
        if randomize:
            self.device = volumes[0].device
            self.randomize(sizes.pop())
        if not self._do_transform:
            return d
        for key, volume in zip(keys, volumes, strict=True):
            is_label = key in self.label_keys
            moved = self.move(volume if is_label else volume.float(), nearest=is_label)
            d[key], *_ = convert_to_dst_type(moved, dst=d[key], dtype=moved.dtype)
        return d


def resample_in_plane(volume: torch.Tensor, positions: torch.Tensor, nearest: bool) -> torch.Tensor:
    """Sample all sections at the same positions; beyond the border they are mirrored.

    Args:
        volume: ``(C, D, H, W)``; float for linear interpolation.
        positions: ``(2, H_out, W_out)``, y and x in pixels, float64.
        nearest: take the nearest pixel, exact for ids of any size, instead of interpolating linearly.

    Returns:
        ``(C, D, H_out, W_out)`` in the volume's dtype.
    """
    H, W = volume.shape[-2:]
    y, x = (_reflect(p, n) for p, n in zip(positions.to(volume.device), (H, W), strict=True))
    if nearest:
        # integer arithmetic, because grid_sample computes in float32, which cannot represent all ids above 2**24
        index = ((y + 0.5).floor() * W + (x + 0.5).floor()).long().flatten()
        rows = volume.reshape(-1, H * W)
        return rows.gather(1, index.expand(len(rows), -1)).reshape(*volume.shape[:2], *positions.shape[1:])
    # grid_sample counts axes from the last, and the centres of the end pixels lie at -1 and 1
    grid = torch.stack([x / max(W - 1, 1), y / max(H - 1, 1)], dim=-1) * 2 - 1
    # with sections as channels of one image, neighbours and weights are computed once
    sections = volume.reshape(1, -1, H, W)
    moved = F.grid_sample(sections, grid[None].to(volume.dtype), padding_mode="border", align_corners=True)
    return moved.reshape(*volume.shape[:2], *positions.shape[1:])


def pixel_positions(size: Sequence[int], device: torch.device | str = "cpu") -> torch.Tensor:
    """Return the pixel positions of a section of ``size`` (H, W), ``(2, H, W)`` for y and x, float64."""
    axes = [torch.arange(n, dtype=torch.float64, device=device) for n in size]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"))


def linear_positions(matrix: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Map the pixel positions of a section linearly about its centre.

    Args:
        matrix: ``(2, 2)`` for y and x, float64.
        size: H, W.

    Returns:
        ``(2, H, W)`` in pixels, float64, on the matrix's device.
    """
    middle = torch.tensor([(n - 1) / 2 for n in size], dtype=torch.float64, device=matrix.device).reshape(2, 1, 1)
    return torch.einsum("ab,bhw->ahw", matrix, pixel_positions(size, matrix.device) - middle) + middle


def rotation_matrix(angle: float) -> torch.Tensor:
    """Return the rotation from y towards x by an angle in radians, ``(2, 2)``, float64."""
    cosine, sine = math.cos(angle), math.sin(angle)
    return torch.tensor([[cosine, -sine], [sine, cosine]], dtype=torch.float64)


def size_with_margins(transforms: Sequence[Callable], size: Sequence[int]) -> tuple[int, int]:
    """Return the size to crop so that the block cut out after the transforms contains no mirror image.

    Args:
        transforms: all transforms in order of application, including those without a margin.
        size: H, W of the central block.
    """
    H, W = size
    for transform in reversed(transforms):
        if isinstance(transform, RandInPlaned):
            margin_y, margin_x = transform.margin_pixels((H, W))
            H, W = H + 2 * margin_y, W + 2 * margin_x
    return H, W


def _reflect(position: torch.Tensor, length: int) -> torch.Tensor:
    """Reflect positions into an axis at the centres of its end pixels."""
    if length == 1:
        return torch.zeros_like(position)
    period = 2 * (length - 1)
    position = position.remainder(period)
    return torch.minimum(position, period - position)
