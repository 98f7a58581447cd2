# SPDX-License-Identifier: Apache-2.0
"""Check that a label map holds labels that a network can learn."""

from __future__ import annotations

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor

from volseg.errors import UserError
from volseg.label_maps.codes import round_labels
from volseg.transforms.each_entry import EachEntryd

__all__ = ["CheckLabelsd"]


class CheckLabelsd(EachEntryd):
    """Round label maps stored with a scale slope (5.00000018) and refuse invalid labels.

    Args:
        keys: entries with label maps ``(1, X, Y, Z)``.
        num_classes: labels run from 0 to ``num_classes - 1``.

    Raises:
        UserError: a value is not an integer, or a label is out of range.
    """

    def __init__(self, keys: KeysCollection, num_classes: int, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.num_classes = num_classes

    def change(self, entry: MetaTensor) -> MetaTensor:
        """Return the rounded labels ``(1, X, Y, Z)``."""
        name = entry.meta.get("filename_or_obj", "label")
        codes = torch.from_numpy(round_labels(entry.as_tensor().numpy(force=True), name))
        lowest, highest = codes.aminmax()
        if lowest < 0 or highest >= self.num_classes:
            values = torch.unique(codes).tolist()  # sorts a whole CT: only for the message
            raise UserError(
                f"{name}: labels must be 0 to {self.num_classes - 1}, got {values[:20]}; convert them first "
                "(prepare_data does so for known sources)"
            )
        return MetaTensor(codes.to(entry.as_tensor()), meta=entry.meta, applied_operations=entry.applied_operations)
