# SPDX-License-Identifier: Apache-2.0
"""The volumes that the interpolation network (arXiv 2104.07961) learns from, and the places it is validated at."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from resunet_mitoem.data import datalist, find_em_volumes
from resunet_mitoem.noisy_sections import find_noisy_sections
from resunet_mitoem.triplets import RandTripletPatch, clean_triplets
from volseg.data.chunked_volume import open_chunked_volume
from volseg.errors import UserError

__all__ = ["fixed_places", "hold_out", "triplet_splits"]

logger = logging.getLogger(__name__)

# what transforms take
Case = dict[Hashable, Any]


def triplet_splits(
    input: str | None,
    dataset_dir: str | None,
    patch_size: Sequence[int],
    phantom_dir: str,
    phantom_cases: Mapping[str, int],
    phantom_shape: Sequence[int],
    phantom_seed: int = 0,
    sections: Sequence[int] | None = None,
    held_out_fraction: float = 0.1,
) -> dict[str, list[Case]]:
    """The clean triplets of the volumes for training and of those for validation.

    Where there are no volumes for validation, the last clean triplets of each volume are held out.

    Args:
        input: volumes of any kind, see :func:`~resunet_mitoem.data.find_em_volumes`; empty: those of the dataset.
        dataset_dir, phantom_dir, phantom_cases, phantom_shape, phantom_seed: see
            :meth:`volseg.phantoms.phantom_set.PhantomSet.datalist`.
        patch_size: (height, width) of the patches, in pixels; both alike.
        sections: the noisy ones of the only volume; ``None`` looks for them, in all volumes.
        held_out_fraction: see :func:`hold_out`.

    Returns:
        for ``training`` and ``validation`` one case a volume: ``volume``, open for reading, and ``sections``, those
        that are clean and have clean neighbours.

    Raises:
        UserError: a volume cannot be read, has no clean triplet or is smaller than the patch; the patch is not square;
            or ``sections`` are given with several volumes.
    """
    if len({*patch_size}) != 1:
        raise UserError(
            f"patch_size: not square, and patches are turned by quarters. Received: {list(patch_size)}. "
            'Expected: such as "[256,256]"'
        )
    if input:
        paths = {"training": [str(path) for path in find_em_volumes(input)], "validation": []}
    else:
        phantoms = (phantom_dir, phantom_cases, phantom_shape, phantom_seed)
        paths = {
            split: [case["image"] for case in datalist(dataset_dir, split, *phantoms)]
            for split in ("training", "validation")
        }
    count = sum(len(found) for found in paths.values())
    if sections and count > 1:
        raise UserError(
            f"sections: they belong to one volume. Received: {list(sections)} for {count} volumes. "
            "Expected: --input with one volume, or no --sections to look for noisy ones"
        )
    splits = {split: [_case(path, sections, patch_size) for path in found] for split, found in paths.items()}
    if splits["validation"]:
        return splits
    pairs = [hold_out(case, held_out_fraction) for case in splits["training"]]
    return {"training": [training for training, _ in pairs], "validation": [validation for _, validation in pairs]}


def hold_out(case: Case, fraction: float) -> tuple[Case, Case]:
    """Split the triplets of a volume in two without a section in common.

    Args:
        case: see :func:`triplet_splits`; its sections ascend.
        fraction: of the triplets, the last of them, that the second part takes; at least one.

    Raises:
        UserError: nothing is left for the first part.
    """
    sections = case["sections"]
    held_out = sections[-max(1, round(fraction * len(sections))) :]
    kept = [section for section in sections if section + 1 < held_out[0] - 1]
    if not kept:
        raise UserError(
            f"{_name(case['volume'])}: too few clean sections to train and to validate on. Received: {len(sections)} "
            "clean triplets. Expected: a deeper volume"
        )
    return {**case, "sections": kept}, {**case, "sections": held_out}


def fixed_places(cases: Sequence[Case], patches: int, patch_size: Sequence[int], seed: int = 0) -> list[Case]:
    """Places of patches that are drawn once; volumes take turns.

    Args:
        cases: see :func:`triplet_splits`.
        patches: how many.
        patch_size: (height, width), in pixels.
        seed: other seeds draw other places.

    Returns:
        entries that :class:`~resunet_mitoem.triplets.TripletPatch` reads.
    """
    draw = RandTripletPatch(patch_size)
    draw.set_random_state(seed)
    places: list[Case] = []
    for number in range(patches):
        case = cases[number % len(cases)]
        draw.randomize(case)
        places.append({"volume": case["volume"], "section": draw.section, "corner": draw.corner})
    return places


def _case(path: str, sections: Sequence[int] | None, patch_size: Sequence[int]) -> Case:
    volume = open_chunked_volume(path)
    if any(patch > size for patch, size in zip(patch_size, volume.shape[1:], strict=True)):
        raise UserError(
            f"{path}: sections smaller than a patch. Received: {tuple(volume.shape[1:])} pixels. "
            f"Expected: at least {tuple(patch_size)}, or a smaller --patch_size"
        )
    noisy = find_noisy_sections(volume, sections)
    triplets = clean_triplets(volume.shape[0], noisy, path)
    logger.info("%s: %d clean triplets, noisy sections: %s", path, len(triplets), noisy or "none")
    return {"volume": volume, "sections": triplets}


def _name(volume: Any) -> str:
    """The path of a volume on disk; an array has none."""
    return str(getattr(volume, "path", "volume"))
