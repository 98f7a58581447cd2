# SPDX-License-Identifier: Apache-2.0
"""How much of the gland the network expects to have found, from its own probabilities."""

from __future__ import annotations

import logging
import math
from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform
from monai.transforms.utils import get_largest_connected_component_mask

__all__ = ["ExpectedDiced", "expected_dice"]

LOWEST_SURE = 0.7
"""Of 18 scans of patients the two with the lowest Dice lie below, and so do noise and halves of scans."""

logger = logging.getLogger(__name__)


def expected_dice(probability: torch.Tensor, threshold: float) -> float:
    """The Dice of the largest piece above a threshold with a truth that follows the probabilities.

    Args:
        probability: of the gland ``(1, X, Y, Z)``.
        threshold: 0 to 1.

    Returns:
        twice the probability inside the piece over its voxels and all probability, 0 to 1; NaN without a piece.
    """
    piece = get_largest_connected_component_mask(probability > threshold, connectivity=1).bool()
    if not piece.any():
        return float("nan")
    inside, everywhere = (float(part.sum(dtype=torch.float64)) for part in (probability[piece], probability))
    return 2 * inside / (int(piece.sum()) + everywhere)


class ExpectedDiced(MapTransform):
    """Note the :func:`expected_dice` in the metadata of a probability, ``quality``, and warn of a low one.

    Args:
        keys: probabilities of the gland ``(1, X, Y, Z)``, which are passed on as they are.
        threshold: that the mask will have.
    """

    def __init__(self, keys: KeysCollection, threshold: float) -> None:
        super().__init__(keys)
        self.threshold = threshold

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        for key in self.key_iterator(dict(data)):
            value = expected_dice(torch.as_tensor(data[key]), self.threshold)
            if not math.isnan(value):
                data[key].meta["quality"] = {"expected_dice": round(value, 3)}
            if value < LOWEST_SURE:
                logger.warning(
                    "%s: the network is unsure of the gland: it expects a Dice of %.2f with the truth, usually %.1f or "
                    "more; check the outline, and the scan's orientation, spacing and field of view.",
                    data[key].meta.get("filename_or_obj", "the image"),  # arrays have no file
                    value,
                    LOWEST_SURE,
                )
        return dict(data)
