# SPDX-License-Identifier: Apache-2.0
"""The table of instances as CSV and as Parquet."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa
import pyarrow.parquet as pq

from volseg.blockwise.zarr_array import local_folder
from volseg.instances.table import NM3_PER_UM3, Extents, instances, write_instance_table
from volseg.storage.file_systems import open_storage
from volseg.storage.files import atomic_path, writing

__all__ = ["local_file", "write_instance_files"]


def write_instance_files(stem: str, counted: Extents, voxel_size_nm: Sequence[float] | None) -> tuple[str, str]:
    """Write ``STEM.csv``, as :func:`volseg.instances.table.write_instance_table` does, and ``STEM.parquet``.

    The Parquet file has the same columns, unrounded: int64, and float64 for the volume (null where the voxel size is
    unknown) and the centroid.

    Args:
        stem: path or URL without suffix.
        counted: the instances.
        voxel_size_nm: along z, y, x; None if unknown.

    Returns:
        the two files.

    Raises:
        UserError: they cannot be written.
    """
    with local_file(f"{stem}.csv") as path:
        write_instance_table(path, instances(counted, voxel_size_nm))
    voxels = counted.sums[:, 0]
    columns = {"id": counted.ids.astype("int64"), "voxels": voxels, "volume_um3": pa.nulls(len(voxels), pa.float64())}
    if voxel_size_nm is not None:
        columns["volume_um3"] = voxels * (math.prod(voxel_size_nm) / NM3_PER_UM3)
    for name, values in (("start", counted.starts), ("stop", counted.stops)):
        columns |= {f"{axis}_{name}": values[:, place] for place, axis in enumerate("zyx")}
    columns |= {f"centroid_{axis}": counted.sums[:, place] / voxels for place, axis in enumerate("zyx", start=1)}
    with local_file(f"{stem}.parquet") as path:
        pq.write_table(pa.table(columns), path)
    return f"{stem}.csv", f"{stem}.parquet"


@contextmanager
def local_file(location: str) -> Iterator[Path]:
    """A path to write a file at that will stand at a path or URL when the block ends without an error.

    Raises:
        UserError: it cannot be written.
    """
    if local := local_folder(location):
        with atomic_path(local) as path:
            yield path
        return
    with TemporaryDirectory() as folder:
        path = Path(folder) / location.rpartition("/")[2]
        yield path
        file_system, target = open_storage(location)
        with writing(location):
            file_system.put_file(str(path), target)
