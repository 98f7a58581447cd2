# SPDX-License-Identifier: Apache-2.0
"""How much of a structure the network expects to have found, from its own probabilities."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform
from monai.transforms.utils import get_largest_connected_component_mask
from monai.utils import convert_to_tensor

from volseg.transforms.native_argmax import class_argmax

__all__ = ["ExpectedDiced", "expected_dice"]

# of the glands of 18 patients the two with the lowest Dice lie below; so do noise, halves of scans, and chests that are
# upside down
LOWEST_SURE = 0.71
# of a larger grid every second voxel along each axis, or fewer, are as good
ENOUGH_VOXELS = 2_000_000

logger = logging.getLogger(__name__)


def expected_dice(probability: torch.Tensor, mask: torch.Tensor) -> float:
    """The Dice of the largest piece of a mask with a truth that follows the probabilities.

    Args:
        probability: of a structure ``(X, Y, Z)``.
        mask: what was found of it ``(X, Y, Z)``.

    Returns:
        twice the probability inside the piece over its voxels and all probability, 0 to 1; NaN for an empty mask.
    """
    if not mask.any():
        return float("nan")
    piece = get_largest_connected_component_mask(mask[None], connectivity=1)[0].bool()
    inside, everywhere = (float(part.sum(dtype=torch.float64)) for part in (probability[piece], probability))
    return 2 * inside / (int(piece.sum()) + everywhere)


class ExpectedDiced(MapTransform):
    """Note the :func:`expected_dice` of what was found in the image's metadata, ``quality``, and warn of low ones.

    Args:
        keys: logits ``(C, X, Y, Z)`` on the network's grid, which are passed on as they are.
        names: class to name of the structure.
        threshold: of the probability; ``None`` where the most probable class is taken.
        orig_key: the image.
    """

    def __init__(
        self, keys: KeysCollection, names: Mapping[str, str], threshold: float | None = None, orig_key: str = "image"
    ) -> None:
        super().__init__(keys)
        self.names = {int(value): name for value, name in names.items()}
        self.threshold = threshold
        self.orig_key = orig_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            self._note(convert_to_tensor(d[key], track_meta=False), d[self.orig_key].meta)
        return d

    def _note(self, logits: torch.Tensor, meta: dict[str, Any]) -> None:
        step = max(1, int((logits[0].numel() / ENOUGH_VOXELS) ** (1 / 3)))
        probabilities = logits[:, ::step, ::step, ::step].float().softmax(0)
        labels = class_argmax(probabilities)
        expected = {}
        for value, name in self.names.items():
            mask = labels == value if self.threshold is None else probabilities[value] > self.threshold
            if mask.any():
                expected[name] = round(expected_dice(probabilities[value], mask), 3)
        meta["quality"] = {**meta.get("quality", {}), "expected_dice": expected}
        unsure = [f"{value:.2f} for {name}" for name, value in expected.items() if value < LOWEST_SURE]
        if unsure:
            logger.warning(
                "%s: the network is unsure: it expects a Dice with the truth of %s, usually %.2f or more; check the "
                "outlines, and the orientation, spacing and field of view.",
                meta.get("filename_or_obj", "the image"),  # arrays have no file
                ", ".join(unsure),
                LOWEST_SURE,
            )
