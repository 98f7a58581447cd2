# SPDX-License-Identifier: Apache-2.0
"""Check that a label map holds labels that a network can learn."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform

from volseg.errors import UserError
from volseg.label_maps.codes import round_labels

__all__ = ["CheckLabelsd"]

logger = logging.getLogger(__name__)


class CheckLabelsd(MapTransform):
    """Round label maps stored with a scale slope (5.00000018), refuse invalid labels and warn of empty maps.

    Args:
        keys: entries with label maps ``(1, X, Y, Z)``.
        num_classes: labels run from 0 to ``num_classes - 1``.
        join: whether every label above 0 becomes 1, for zones of one organ, and masks of 0 and 255.

    Raises:
        UserError: a value is not an integer, or a label is out of range.
    """

    def __init__(
        self, keys: KeysCollection, num_classes: int, join: bool = False, allow_missing_keys: bool = False
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.num_classes = num_classes
        self.join = join

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            d[key] = self.check(d[key])
        return d

    def check(self, label: MetaTensor) -> MetaTensor:
        """Return the rounded labels ``(1, X, Y, Z)``."""
        name = label.meta.get("filename_or_obj", "label")
        codes = torch.from_numpy(round_labels(label.as_tensor().numpy(force=True), name))
        if self.join:
            codes = (codes > 0).to(codes.dtype)
        lowest, highest = codes.aminmax()
        if lowest < 0 or highest >= self.num_classes:
            values = torch.unique(codes).tolist()  # sorts a whole CT: only for the message
            hint = (
                "give --join_labels True if every label above 0 is part of the structure"
                if self.num_classes == 2 and lowest >= 0
                else "convert them first (prepare_data does so for known sources)"
            )
            raise UserError(f"{name}: labels must be 0 to {self.num_classes - 1}, got {values[:20]}; {hint}")
        if highest == 0:
            logger.warning("%s: the label map is empty; label the structure, or leave the case out", name)
        return MetaTensor(codes.to(label.as_tensor()), meta=label.meta, applied_operations=label.applied_operations)
