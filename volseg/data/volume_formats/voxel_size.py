# SPDX-License-Identifier: Apache-2.0
"""Derive voxel sizes in nanometres from a file's metadata."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from volseg.data.volume_formats.stored_axes import StoredAxes
from volseg.errors import UserError

__all__ = [
    "VoxelSize",
    "checked_voxel_size",
    "chosen_voxel_size",
    "nm_per_unit",
    "voxel_size_from_attributes",
    "voxel_size_in_nm",
]

logger = logging.getLogger(__name__)

VoxelSize = tuple[float, float, float]

_NM_PER_UNIT = {
    1e-1: ("å", "angstrom"),
    1: ("nm", "nanometer", "nanometre"),
    # the micro sign, the Greek letter, and the micro sign as escaped by ImageJ
    1e3: ("um", "µm", "μm", "\\u00b5m", "micron", "micrometer", "micrometre"),
    1e6: ("mm", "millimeter", "millimetre"),
    1e7: ("cm", "centimeter", "centimetre"),
    1e9: ("m", "meter", "metre"),
}
_NM = {name: nm for nm, names in _NM_PER_UNIT.items() for name in names}
_SIMILAR = 1e-3  # sizes that differ by less are one size, rounded


def nm_per_unit(unit: Any) -> float | None:
    """Nanometres in a unit of length, written as text or bytes, singular or plural; None if it is none."""
    name = (unit.decode("utf-8", "replace") if isinstance(unit, bytes) else str(unit)).strip("\0 ").lower()
    return _NM.get(name, _NM.get(name.removesuffix("s")))


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
        nm = nm_per_unit(unit)
        try:
            edge = float(size)
        except (TypeError, ValueError):
            return None
        if nm is None or not (math.isfinite(edge) and edge > 0):
            return None
        edges_nm.append(edge * nm)
    return (edges_nm[0], edges_nm[1], edges_nm[2]) if len(edges_nm) == 3 else None


def checked_voxel_size(sizes: Sequence[float] | None, name: str = "voxel_size_nm") -> VoxelSize | None:
    """Three lengths in nm along z, y, x; None stays None.

    Args:
        sizes: as given.
        name: of the option.

    Raises:
        UserError: they are invalid.
    """
    if sizes is None:
        return None
    if not isinstance(sizes, Sequence) or len(sizes) != 3 or not all(_is_length(size) for size in sizes):
        raise UserError(f"{name} must be three lengths in nm along z, y, x such as [30,8,8], got {sizes}")
    z_nm, y_nm, x_nm = (float(size) for size in sizes)
    return z_nm, y_nm, x_nm


def _is_length(size: object) -> bool:
    return isinstance(size, int | float) and math.isfinite(size) and size > 0


def chosen_voxel_size(path: str | Path, stored: VoxelSize | None, given: VoxelSize | None) -> VoxelSize | None:
    """Return the voxel size (z, y, x) in nm that a user gives, or else the file's; log a warning if they differ."""
    if given is None or stored is None:
        return given or stored
    if any(abs(math.log(a / b)) > _SIMILAR for a, b in zip(given, stored, strict=True)):
        texts = ("x".join(f"{edge:g}" for edge in size) for size in (given, stored))
        logger.warning("%s: voxel_size_nm %s replaces the %s nm that the file says", path, *texts)
    return given


def voxel_size_from_attributes(attributes: Mapping[str, Any], axes: StoredAxes) -> VoxelSize | None:
    """Return the voxel size (z, y, x) in nm from attributes of an HDF5 data set or Zarr array, or None.

    Supported are ``element_size_um`` (ilastik, PlantSeg), and ``voxel_size`` (funlib) and ``resolution`` (CREMI), both
    in nm unless ``units`` says otherwise.
    """
    for key, default_unit in (("element_size_um", "um"), ("voxel_size", "nm"), ("resolution", "nm")):
        if key in attributes:
            stored = default_unit if key == "element_size_um" else attributes.get("units", default_unit)
            sizes, units = axes.of_spatial(np.ravel(attributes[key]).tolist()), np.ravel(stored).tolist()
            return voxel_size_in_nm(sizes, axes.of_spatial(units * 3 if len(units) == 1 else units))
    return None
