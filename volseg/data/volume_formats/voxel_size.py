# SPDX-License-Identifier: Apache-2.0
"""Derive voxel sizes in nanometres from a file's metadata."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

__all__ = ["VoxelSize", "voxel_size_from_attributes", "voxel_size_in_nm"]

VoxelSize = tuple[float, float, float]

_NM_PER_UNIT = {
    1e-1: ("å", "angstrom"),
    1: ("nm", "nanometer", "nanometre"),
    # the micro sign, the Greek letter, and the micro sign as escaped by ImageJ
    1e3: ("um", "µm", "μm", "\\u00b5m", "micron", "microns", "micrometer", "micrometre"),
    1e6: ("mm", "millimeter", "millimetre"),
    1e7: ("cm", "centimeter", "centimetre"),
    1e9: ("m", "meter", "metre"),
}
_NM = {name: nm for nm, names in _NM_PER_UNIT.items() for name in names}


def voxel_size_in_nm(sizes: Iterable[Any], units: Iterable[Any]) -> VoxelSize | None:
    """Convert a voxel size to nm.

    Args:
        sizes: edge lengths of a voxel along z, y, x.
        units: the unit of each.

    Returns:
        (z, y, x), or None if a size is not a positive number or a unit is not a length: such metadata say nothing.
    """
    edges_nm = []
    for size, unit in zip(sizes, units, strict=False):
        name = unit.decode("utf-8", "replace") if isinstance(unit, bytes) else str(unit)
        nm = _NM.get(name.strip().lower())
        try:
            edge = float(size)
        except (TypeError, ValueError):
            return None
        if nm is None or not (math.isfinite(edge) and edge > 0):
            return None
        edges_nm.append(edge * nm)
    return (edges_nm[0], edges_nm[1], edges_nm[2]) if len(edges_nm) == 3 else None


def voxel_size_from_attributes(attributes: Mapping[str, Any]) -> VoxelSize | None:
    """Return the voxel size (z, y, x) in nm from attributes of an HDF5 data set or Zarr array, or None.

    Supported are ``element_size_um`` (ilastik, PlantSeg), and ``voxel_size`` (funlib) and ``resolution`` (CREMI), both
    in nm unless ``units`` says otherwise.
    """
    for key, default_unit in (("element_size_um", "um"), ("voxel_size", "nm"), ("resolution", "nm")):
        if key in attributes:
            units = default_unit if key == "element_size_um" else attributes.get("units", default_unit)
            return voxel_size_in_nm(np.ravel(attributes[key]), np.broadcast_to(np.ravel(units), 3))
    return None
