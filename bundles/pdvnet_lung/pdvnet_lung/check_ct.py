# SPDX-License-Identifier: Apache-2.0
"""See that a volume is a CT this bundle can work on."""

from __future__ import annotations

from monai.config import KeysCollection

from volseg.errors import UserError
from volseg.transforms.check_volume import CheckVolumed

__all__ = ["CheckCTd"]

AIR_HU = -1000.0
# any CT of the chest holds lung or air below this, and no image scaled to 0..255 or 0..1 does
LOW_HU = -500.0


class CheckCTd(CheckVolumed):
    """Refuse what is no chest CT; voxels that are not finite become air.

    Args:
        keys: entries with CTs ``(1, X, Y, Z)`` in HU, in any axis order.
        minimum_slices: along the axis closest to the patient's.

    Raises:
        UserError: too few slices, or intensities that cannot be HU.
    """

    def __init__(self, keys: KeysCollection, minimum_slices: int = 8, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, minimum_slices, AIR_HU, "a chest CT", 20.0, allow_missing_keys)

    def check_intensities(self, name: str, low: float, high: float) -> None:
        """No voxel as dark as lung: not HU."""
        if low > LOW_HU:
            raise UserError(
                f"{name}: not in Hounsfield units, no voxel is as dark as lung. Received: {low:g} to {high:g}. "
                "Apply the rescale slope and intercept of the original file."
            )
