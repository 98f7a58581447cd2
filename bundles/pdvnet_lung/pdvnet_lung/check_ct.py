# SPDX-License-Identifier: Apache-2.0
"""Check that a volume is a CT that this bundle can process."""

from __future__ import annotations

from monai.config import KeysCollection

from volseg.errors import UserError
from volseg.transforms.checks import CheckVolumed

__all__ = ["CheckCTd"]

AIR_HU = -1000.0
# every chest CT contains lung or air below this value; no image scaled to 0..255 or 0..1 does
LOW_HU = -500.0


class CheckCTd(CheckVolumed):
    """Refuse volumes that are not a chest CT; set non-finite voxels to air.

    Args:
        keys: entries with CTs ``(1, X, Y, Z)`` in HU, in any axis order.
        minimum_slices: minimum number along the axis closest to the patient's long axis.

    Raises:
        UserError: too few slices, or intensities that cannot be HU.
    """

    def __init__(self, keys: KeysCollection, minimum_slices: int = 8, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, minimum_slices, AIR_HU, "a chest CT", 20.0, allow_missing_keys)

    def check_intensities(self, name: str, low: float, high: float) -> None:
        """Raise ``UserError`` for intensities that are not HU: no voxel is as dark as lung."""
        if low > LOW_HU:
            raise UserError(
                f"{name}: intensities must be Hounsfield units, but no voxel is as dark as lung, got {low:g} to "
                f"{high:g}; apply the rescale slope and intercept of the original file (pictures of 8 bits have none)"
            )
