# SPDX-License-Identifier: Apache-2.0
"""How much of a structure the network expects to have found, from its own probabilities."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from monai.utils import convert_to_tensor
from scipy import ndimage

from volseg.transforms.native_argmax import class_argmax

__all__ = ["ExpectedDiced", "expected_dice"]

# of the glands of 18 patients the two with the lowest Dice lie below; so do noise, most halves of scans, chests upside
# down, and tissue whose voxel size is wrong by a factor of two, or whose grey values are inverted
LOWEST_SURE = 0.71
# of a larger grid every second voxel along each axis, or fewer, are as good
ENOUGH_VOXELS = 2_000_000

logger = logging.getLogger(__name__)


def expected_dice(probability: torch.Tensor, mask: torch.Tensor) -> float:
    """The Dice of a mask with a truth that follows the probabilities.

    Args:
        probability: of a structure, any shape.
        mask: what was found of it, of the same shape.

    Returns:
        twice the probability inside the mask over its voxels and all probability, 0 to 1; NaN for an empty mask.
    """
    if not mask.any():
        return float("nan")
    inside, everywhere = (float(part.sum(dtype=torch.float64)) for part in (probability[mask], probability))
    return 2 * inside / (int(mask.sum()) + everywhere)


class ExpectedDiced(MapTransform):
    """Note the :func:`expected_dice` of what is found in the image's metadata, ``quality``, and warn of low ones.

    Args:
        keys: logits of classes ``(C, X, Y, Z)`` on the network's grid, which are passed on as they are.
        names: class, or channel, to name of the structure.
        threshold: of the probability; ``None`` where the most probable class is taken.
        check: what the warning tells a user to look at.
        logits: ``False`` where the channels are probabilities of structures.
        largest_piece: whether only the largest piece of a structure is kept afterwards.
        orig_key: the image; where it is NaN on the network's grid, nothing is expected.
    """

    def __init__(
        self,
        keys: KeysCollection,
        names: Mapping[str, str],
        threshold: float | None = None,
        check: str = "the outlines, and the orientation, spacing and field of view",
        logits: bool = True,
        largest_piece: bool = True,
        orig_key: str = "image",
    ) -> None:
        super().__init__(keys)
        self.names = {int(value): name for value, name in names.items()}
        self.threshold = threshold
        self.check = check
        self.logits = logits
        self.largest_piece = largest_piece
        self.orig_key = orig_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            self._note(convert_to_tensor(d[key], track_meta=False), d[self.orig_key])
        return d

    def _note(self, channels: torch.Tensor, image: MetaTensor) -> None:
        meta = image.meta
        step = max(1, int((channels[0].numel() / ENOUGH_VOXELS) ** (1 / 3)))
        probabilities = channels[:, ::step, ::step, ::step].float()
        if self.logits:
            probabilities = probabilities.softmax(0)
        if image.shape[1:] == channels.shape[1:]:  # NaN is no tissue
            blank = image.as_tensor()[0, ::step, ::step, ::step].isnan().to(probabilities.device)
            probabilities = probabilities.masked_fill(blank, 0)
        if self.threshold is None:
            classes = torch.arange(len(probabilities), device=probabilities.device).reshape(-1, 1, 1, 1)
            found = class_argmax(probabilities) == classes
        else:
            found = probabilities > self.threshold
        expected = {}
        for value, name in self.names.items():
            mask = found[value]
            if mask.any():
                if self.largest_piece:
                    mask = _largest_piece(mask)
                expected[name] = round(expected_dice(probabilities[value], mask), 3)
        meta["quality"] = {**meta.get("quality", {}), "expected_dice": expected}
        unsure = [f"{value:.2f} for {name}" for name, value in expected.items() if value < LOWEST_SURE]
        if unsure:
            logger.warning(
                "%s: the network is unsure: it expects a Dice with the truth of %s, usually %.2f or more; check %s.",
                meta.get("filename_or_obj", "the image"),  # arrays have no file
                ", ".join(unsure),
                LOWEST_SURE,
                self.check,
            )


def _largest_piece(mask: torch.Tensor) -> torch.Tensor:
    """The largest piece of voxels that share faces; MONAI's needs scikit-image, which not every bundle has."""
    pieces, _ = ndimage.label(mask.cpu().numpy())
    largest = np.bincount(pieces.ravel())[1:].argmax() + 1
    return torch.from_numpy(pieces == largest).to(mask.device)
