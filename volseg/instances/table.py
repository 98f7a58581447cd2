# SPDX-License-Identifier: Apache-2.0
"""One line an instance: how large it is and where it lies."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import NamedTuple

import numpy as np

from volseg.storage.files import atomic_path

__all__ = ["Extents", "Instance", "extents", "instance_table", "instances", "joined_extents", "write_instance_table"]

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
    """Measure every instance, in one pass section by section.

    Memory beside the labels: about 2 bytes per pixel of one section and 80 bytes per instance of each section, which
    for 100 x 4096 x 4096 voxels and 10 000 instances is below 0.1 GB.

    Args:
        labels: ``(D, H, W)`` of an integer type, 0 background. Ids may have gaps and any size.
        voxel_size_nm: along z, y, x; None if unknown.

    Returns:
        instances in the order of their ids.
    """
    return list(instances(extents(labels), voxel_size_nm))


def write_instance_table(path: str | Path, table: Iterable[Instance]) -> None:
    """Write a CSV, whole or not at all; without instances it holds the header alone, unknown volumes are empty.

    Centroids have two decimals, volumes six significant digits.
    """
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Instance)], lineterminator="\n")
        writer.writeheader()
        for instance in table:
            row = asdict(instance)
            for key in ("centroid_z", "centroid_y", "centroid_x"):
                row[key] = round(row[key], 2)
            if row["volume_um3"] is not None:
                row["volume_um3"] = float(f"{row['volume_um3']:.6g}")
            writer.writerow(row)


class Extents(NamedTuple):
    """What is counted of N instances, or of the parts of them that lie in one block.

    Attributes:
        ids: (N,).
        sums: (N, 4) int64: number of voxels, sums of their z, y and x.
        starts: (N, 3) int64: first z, y, x.
        stops: (N, 3) int64: one past the last.
    """

    ids: np.ndarray
    sums: np.ndarray
    starts: np.ndarray
    stops: np.ndarray


def extents(labels: np.ndarray, start: Sequence[int] = (0, 0, 0)) -> Extents:
    """Count every instance of a volume or a block, section by section.

    Args:
        labels: ``(D, H, W)`` of an integer type, 0 background.
        start: z, y, x of the block's first voxel in the volume.

    Returns:
        one row an instance, in the order of ids.
    """
    return joined_extents(joined_extents([_runs(section, start[0] + z, start)]) for z, section in enumerate(labels))


def joined_extents(parts: Iterable[Extents]) -> Extents:
    """The parts of each instance together, in the order of ids."""
    ids, sums, starts, stops = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    order = np.argsort(ids, kind="stable")
    ids = ids[order]
    first = np.flatnonzero(np.append(True, ids[1:] != ids[:-1])[: ids.size])
    return Extents(
        ids[first],
        np.add.reduceat(sums[order], first),
        np.minimum.reduceat(starts[order], first),
        np.maximum.reduceat(stops[order], first),
    )


def instances(counted: Extents, voxel_size_nm: Sequence[float] | None) -> Iterator[Instance]:
    """The lines of the table, one at a time."""
    voxel_um3 = None if voxel_size_nm is None else math.prod(voxel_size_nm) / NM3_PER_UM3
    for index, (voxels, *sums), starts, stops in zip(*(column.tolist() for column in counted), strict=True):
        volume_um3 = None if voxel_um3 is None else voxels * voxel_um3
        yield Instance(index, voxels, volume_um3, *starts, *stops, *(total / voxels for total in sums))


def _runs(section: np.ndarray, z: int, start: Sequence[int]) -> Extents:
    """The stretches of one id along the rows of a section: some hundred times fewer than pixels."""
    is_start = np.ones(section.shape, dtype=bool)
    np.not_equal(section[:, 1:], section[:, :-1], out=is_start[:, 1:])
    starts = np.flatnonzero(is_start)
    lengths = np.diff(starts, append=section.size)
    y, x = np.divmod(starts, section.shape[1])
    ids = section[y, x]
    kept = ids > 0
    ids, lengths, y, x = ids[kept], lengths[kept], y[kept] + start[1], x[kept] + start[2]
    sums = np.stack([lengths, lengths * z, lengths * y, lengths * (2 * x + lengths - 1) // 2], axis=1)
    sections = np.full_like(x, z)
    return Extents(ids, sums, np.stack([sections, y, x], axis=1), np.stack([sections + 1, y + 1, x + lengths], axis=1))
