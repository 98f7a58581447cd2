# SPDX-License-Identifier: Apache-2.0
"""Random smooth deformation by cubic B-splines on a coarse mesh (V-Net, arXiv 1606.04797, section 3)."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from monai.config import KeysCollection
from monai.transforms import MapTransform, RandomizableTransform, Transform
from monai.utils import GridSamplePadMode, convert_to_dst_type, convert_to_tensor, ensure_tuple

__all__ = ["BSplineDeform", "RandBSplineDeformd", "displacement_field"]


class BSplineDeform(Transform):
    """Warp a volume by the displacement field of given control coefficients: ``out(p) = in(p + d(p))``.

    Interpolation is linear. The mesh is placed as in ITK: ``SimpleITK.BSplineTransform`` gives the same result with the
    same coefficients, except within one voxel of the border. There ITK switches to the outside value at once, while
    here voxels blend with it.

    Args:
        padding_mode: value outside: ``"zeros"``, or ``"border"`` for the nearest voxel's value. In a z-scored image
            zero is the mean, not the background.
    """

    def __init__(self, padding_mode: str = GridSamplePadMode.ZEROS) -> None:
        self.padding_mode = GridSamplePadMode(padding_mode).value

    def __call__(  # type: ignore[override]
        self, volume: torch.Tensor, coefficients: torch.Tensor
    ) -> torch.Tensor:
        """Warp all channels by the same field.

        Args:
            volume: ``(C, X, Y, Z)``.
            coefficients: ``(3, mesh_x + 3, mesh_y + 3, mesh_z + 3)`` in voxels along X, Y, Z.

        Returns:
            float32 ``(C, X, Y, Z)`` on the volume's device.

        Raises:
            ValueError: the coefficients have another shape.
        """
        _check_coefficients(coefficients)
        size = volume.shape[1:]
        # grid_sample counts axes from the last, and the centres of the end voxels lie at -1 and 1
        halves = torch.tensor([max(n - 1, 1) / 2 for n in size], device=volume.device).reshape(3, 1, 1, 1)
        grid = displacement_field((coefficients.to(volume.device) / halves).flip(0), size)  # (X, Y, Z, 3)
        for axis, n in enumerate(size):
            voxels = torch.linspace(-1, 1, n, device=volume.device)
            grid[..., 2 - axis] += voxels.reshape([-1 if a == axis else 1 for a in range(3)])
        return F.grid_sample(volume.float()[None], grid[None], padding_mode=self.padding_mode, align_corners=True)[0]


class RandBSplineDeformd(RandomizableTransform, MapTransform):
    """Deform the image and labels of a case together by a random smooth field.

    Control coefficients are drawn from a normal distribution and stay in ``coefficients`` until the next draw. A call
    with ``randomize=False`` repeats the deformation, and :class:`BSplineDeform` can apply it elsewhere. The geometry
    stays that of the input, as with MONAI's ``Rand3DElasticd``, and there is no inverse.

    Args:
        keys: entries ``(C, X, Y, Z)`` on one grid.
        label_keys: entries among ``keys`` that hold masks of 0 and 1. Their result is 1 where the interpolated mask
            exceeds 0.5, in the original dtype.
        mesh_size: cubic pieces along each axis; each axis has three more control points, 5 for a mesh of 2. The paper's
            "2 x 2 x 2 control points" are this mesh, as in ITK: a cubic piece needs at least 4 points.
        standard_deviation_voxels: of the coefficients along each axis. The default moves voxels by about 6 within
            slices only. Slices of prostate MRI are 3 to 4 mm thick, so motion across them would invent anatomy; the
            authors' released code leaves it out as well.
        prob: probability of a deformation, from the released code; the paper does not give it.
        padding_mode: see :class:`BSplineDeform`.
    """

    def __init__(
        self,
        keys: KeysCollection,
        label_keys: KeysCollection = (),
        mesh_size: Sequence[int] = (2, 2, 2),
        standard_deviation_voxels: Sequence[float] = (15.0, 15.0, 0.0),
        prob: float = 0.5,
        padding_mode: str = GridSamplePadMode.ZEROS,
        allow_missing_keys: bool = False,
    ) -> None:
        if unknown := set(ensure_tuple(label_keys)) - set(ensure_tuple(keys)):
            raise ValueError(f"label_keys must be among keys {ensure_tuple(keys)}, got {sorted(map(str, unknown))}")
        MapTransform.__init__(self, keys, allow_missing_keys)
        RandomizableTransform.__init__(self, prob)
        self.label_keys = ensure_tuple(label_keys)
        self.coefficients_shape = (3, *(m + 3 for m in mesh_size))
        self.standard_deviation_voxels = tuple(standard_deviation_voxels)
        self.deform = BSplineDeform(padding_mode)
        self.coefficients: torch.Tensor | None = None

    def randomize(self, data: Any | None = None) -> None:
        """Decide whether to deform and, if so, draw the coefficients."""
        super().randomize(None)
        self.coefficients = None
        if self._do_transform:
            standard = self.R.standard_normal(self.coefficients_shape)
            scale = torch.tensor(self.standard_deviation_voxels, dtype=torch.float64).reshape(3, 1, 1, 1)
            self.coefficients = (torch.from_numpy(standard) * scale).float()

    def __call__(self, data: Mapping[Hashable, Any], randomize: bool = True) -> dict[Hashable, Any]:
        """Deform with a new draw or repeat the last one.

        Raises:
            ValueError: the entries differ in size.
        """
        d = dict(data)
        if randomize:
            self.randomize()
        keys = list(self.key_iterator(d))
        if self.coefficients is None or not keys:
            return d
        volumes = [convert_to_tensor(d[key], track_meta=False) for key in keys]
        sizes = {tuple(v.shape[1:]) for v in volumes}
        if len(sizes) > 1:
            raise ValueError(f"entries {keys} must lie on one grid, got sizes {sorted(sizes)}")
        # one pass over all channels: finding the eight neighbours of each position takes most of the time
        warped = self.deform(torch.cat([v.float() for v in volumes]), self.coefficients)
        for key, before, after in zip(keys, volumes, warped.split([len(v) for v in volumes]), strict=True):
            is_label = key in self.label_keys
            d[key], *_ = convert_to_dst_type(
                after > 0.5 if is_label else after,
                dst=d[key],
                dtype=before.dtype if is_label or before.is_floating_point() else torch.float32,
            )
        return d


def displacement_field(coefficients: torch.Tensor, spatial_size: Sequence[int]) -> torch.Tensor:
    """Return the displacement of every voxel of a volume, components last, as ``grid_sample`` expects them.

    Args:
        coefficients: ``(3, mesh_x + 3, mesh_y + 3, mesh_z + 3)`` in voxels along X, Y, Z.
        spatial_size: X, Y, Z.

    Returns:
        float32 ``(X, Y, Z, 3)`` in voxels.

    Raises:
        ValueError: the coefficients have another shape.
    """
    _check_coefficients(coefficients)
    along_x, along_y, along_z = (
        _basis(n, points - 3).to(coefficients.device)
        for n, points in zip(spatial_size, coefficients.shape[1:], strict=True)
    )
    # Tensor product, one axis at a time. The last and largest step merges components and Z into one matrix
    # (points_z * 3, Z * 3): one matrix product is five times faster than a batch of tiny ones
    field = coefficients.float().permute(1, 2, 3, 0)  # (points_x, points_y, points_z, 3)
    field = torch.einsum("xa,yb,abec->xyec", along_x, along_y, field)  # (X, Y, points_z, 3)
    components = torch.eye(3, dtype=field.dtype, device=field.device)
    last = torch.einsum("ze,cd->eczd", along_z, components).reshape(3 * along_z.shape[1], -1)
    return (field.reshape(-1, len(last)) @ last).reshape(*spatial_size, 3)


def _check_coefficients(coefficients: torch.Tensor) -> None:
    shape = tuple(coefficients.shape)
    if len(shape) != 4 or shape[0] != 3 or min(shape[1:]) < 4:
        raise ValueError(f"coefficients must have the shape (3, >= 4, >= 4, >= 4), got {shape}")


def _basis(size: int, mesh_size: int) -> torch.Tensor:
    """Return uniform cubic B-splines at the voxels of an axis, ``(size, mesh_size + 3)``; rows sum to 1."""
    # ITK's domain extends half a voxel beyond the end voxels, and its initialiser adds another eighth
    position = mesh_size * (torch.arange(size, dtype=torch.float64) + 0.625) / (size + 0.25)
    piece = position.long()
    v = position - piece
    weights = torch.stack([(1 - v) ** 3, 3 * v**3 - 6 * v**2 + 4, -3 * v**3 + 3 * v**2 + 3 * v + 1, v**3], dim=1) / 6
    basis = torch.zeros(size, mesh_size + 3, dtype=torch.float64)
    return basis.scatter_(1, piece[:, None] + torch.arange(4), weights).float()
