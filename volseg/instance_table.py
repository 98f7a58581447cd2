# SPDX-License-Identifier: Apache-2.0
"""One line an instance: how large it is and where it lies."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
from scipy import ndimage

from volseg.files import atomic_path

__all__ = ["Instance", "instance_table", "write_instance_table"]

NM3_PER_UM3 = 1e9


@dataclass(frozen=True)
class Instance:
    """An instance of a label volume ``(D, H, W)``.

    Attributes:
        id: its value in the volume.
        voxels: their number.
        volume_um3: in cubic micrometres; None where the voxel size is unknown.
        z_start, y_start, x_start: first voxel of the bounding box.
        z_stop, y_stop, x_stop: one past its last voxel.
        centroid_z, centroid_y, centroid_x: mean voxel index.
    """

    id: int
    voxels: int
    volume_um3: float | None
    z_start: int
    y_start: int
    x_start: int
    z_stop: int
    y_stop: int
    x_stop: int
    centroid_z: float
    centroid_y: float
    centroid_x: float


def instance_table(labels: np.ndarray, voxel_size_nm: Sequence[float] | None) -> list[Instance]:
    """Measure every instance.

    Args:
        labels: ``(D, H, W)`` of an integer type, 0 background. Ids may have gaps; memory grows with the highest.
        voxel_size_nm: along z, y, x; None if unknown.

    Returns:
        instances in the order of their ids.
    """
    voxel_um3 = None if voxel_size_nm is None else math.prod(voxel_size_nm) / NM3_PER_UM3
    table = []
    for index, box in enumerate(ndimage.find_objects(labels.astype(np.int32, copy=False)), start=1):
        if box is None:
            continue
        inside = labels[box] == index
        voxels = int(np.count_nonzero(inside))
        # the sums over two axes are short vectors: centroids need no index array of the size of the box
        profiles = [inside.sum(axis=tuple(a for a in range(3) if a != axis)) for axis in range(3)]
        centroid = [
            float(np.dot(profile, np.arange(side.start, side.stop))) / voxels
            for profile, side in zip(profiles, box, strict=True)
        ]
        starts, stops = [side.start for side in box], [side.stop for side in box]
        volume_um3 = None if voxel_um3 is None else voxels * voxel_um3
        table.append(Instance(index, voxels, volume_um3, *starts, *stops, *centroid))
    return table


def write_instance_table(path: str | Path, table: Sequence[Instance]) -> None:
    """Write a CSV, whole or not at all; without instances it holds the header alone."""
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Instance)])
        writer.writeheader()
        for instance in table:
            row = asdict(instance)
            for key in ("centroid_z", "centroid_y", "centroid_x"):
                row[key] = round(row[key], 2)
            if row["volume_um3"] is not None:
                row["volume_um3"] = float(f"{row['volume_um3']:.6g}")
            writer.writerow(row)
