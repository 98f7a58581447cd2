# SPDX-License-Identifier: Apache-2.0
"""Describe the voxel grid of a volume and compare two grids."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from volseg.errors import UserError

__all__ = ["VoxelGrid", "check_same_grid", "grid_difference", "grid_from_itk"]

# Grid corners of label and image may differ by this fraction of the smallest voxel edge: headers are rounded to about
# six digits, while a label of another image is off by whole voxels.
_TOLERANCE_VOXELS = 0.1


@dataclass(frozen=True)
class VoxelGrid:
    """The positions of a volume's voxels.

    Attributes:
        shape: voxels along x, y, z.
        affine: (4, 4), voxel index to millimetres in RAS+, as in NIfTI.
    """

    shape: tuple[int, ...]
    affine: NDArray[np.float64]


def grid_from_itk(
    shape: Sequence[int], direction: NDArray[np.float64], spacing_mm: Sequence[float], origin_mm: Sequence[float]
) -> VoxelGrid:
    """Return the grid of an ITK image: ITK's axes point left and posterior, those of NIfTI right and anterior."""
    affine = np.eye(len(shape) + 1)
    affine[:-1, :-1] = direction * np.asarray(spacing_mm)
    affine[:-1, -1] = origin_mm
    affine[:2] *= -1
    return VoxelGrid(tuple(int(size) for size in shape), affine)


def check_same_grid(label_file: Path, label: VoxelGrid, image_file: Path, image: VoxelGrid) -> None:
    """Check that a label lies on the grid of its image.

    Raises:
        UserError: names the label's file and the first property that differs.
    """
    difference = grid_difference(label, image)
    if difference:
        raise UserError(
            f"{label_file}: not on the grid of its image: {difference} of {image_file}; "
            "remove the case or repair the header"
        )


def grid_difference(label: VoxelGrid, image: VoxelGrid) -> str | None:
    """Return the first property that differs, in words, or None if both are the same 3-D grid."""
    if label.shape != image.shape or len(image.shape) != 3:
        return f"shape {_row(label.shape)} against {_row(image.shape)}"
    spacings = [np.linalg.norm(grid.affine[:3, :3], axis=0) for grid in (label, image)]
    corners = np.stack(np.meshgrid(*((0, size - 1) for size in image.shape), [1], indexing="ij"), -1).reshape(-1, 4)
    offsets_mm = np.linalg.norm(corners @ (label.affine - image.affine).T, axis=1)
    if math.isfinite(offsets_mm.max()) and offsets_mm.max() <= _TOLERANCE_VOXELS * spacings[1].min():
        return None
    if not np.allclose(spacings[0], spacings[1], rtol=1e-3, atol=0):
        return f"spacing {_row(spacings[0])} mm against {_row(spacings[1])} mm"
    directions = [grid.affine[:3, :3] / spacing for grid, spacing in zip((label, image), spacings, strict=True)]
    if not np.allclose(directions[0], directions[1], atol=1e-3):
        return f"direction {_row(directions[0])} against {_row(directions[1])}, in RAS,"
    origins = [_row(grid.affine[:3, 3]) for grid in (label, image)]
    return f"origin {origins[0]} mm against {origins[1]} mm, in RAS,"


def _row(values: Any) -> str:
    # Adding zero turns -0.0 into 0.
    return "(" + ", ".join(f"{value + 0.0:.6g}" for value in np.ravel(values)) + ")"
