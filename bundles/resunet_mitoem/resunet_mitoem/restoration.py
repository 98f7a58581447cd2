# SPDX-License-Identifier: Apache-2.0
"""Restore volumes on disk and say what was replaced: what ``configs/restore.json`` calls."""

from __future__ import annotations

import csv
import logging
import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from resunet_mitoem.data import LABEL_NAME, PHANTOM_BINNING, find_em_volumes
from resunet_mitoem.interpolation import SectionInterpolationNetwork, interpolate_section
from resunet_mitoem.noisy_sections import (
    Replacement,
    SectionAssessment,
    assess_sections,
    check_one_volume,
    find_noisy_sections,
    plan_restoration,
)
from volseg.data.ome_zarr import DEFAULT_CHUNKS, create_ome_zarr
from volseg.data.open_volume import ChunkedVolume, open_chunked_volume
from volseg.errors import UserError
from volseg.handlers.instance_results import free_case_name
from volseg.phantoms.dataset import OmeZarrVolumes, PhantomSet
from volseg.phantoms.electron_microscopy import GENERATION, electron_microscopy
from volseg.storage.files import atomic_path
from volseg.weights import load_weights

logger = logging.getLogger(__name__)

PREVIEWED_SECTIONS = 4
# noise is seen in single pixels: a panel shows a part of the section, and all of its pixels
PREVIEW_PIXELS = 384

COLUMNS = ("section", "noisy", "reason", "high_frequency", "similarity", "restored_from_before", "restored_from_after")

_SPOILT_PHANTOMS = PhantomSet(
    "electron microscopy phantoms with spoilt sections",
    partial(electron_microscopy, missing=1, noisy=3, binning=PHANTOM_BINNING),
    GENERATION,
    OmeZarrVolumes(LABEL_NAME),
    find_em_volumes,
)
restoration_list = _SPOILT_PHANTOMS.inference_list


def restore_volumes(
    cases: Sequence[Mapping[str, str]],
    network: SectionInterpolationNetwork,
    weights: str | Path,
    output_dir: str | Path,
    sections: Sequence[int] | None = None,
    tile_size: int = 512,
    preview: bool = True,
) -> list[Path]:
    """Restore volumes one after another, see :func:`restore_volume`.

    Args:
        cases: ``image``, the path of a volume.
        network: on the device that it shall run on.
        weights: its state dict.
        output_dir, sections, tile_size, preview: see :func:`restore_volume`.

    Returns:
        the restored volumes.

    Raises:
        UserError: no weights; ``sections`` with several volumes; or a volume cannot be restored.
    """
    check_one_volume(sections, len(cases))
    if not Path(weights).is_file():
        raise UserError(
            f"{weights}: no weights there. Train first (configs/train_interpolation.json), "
            "or give a file with --weights."
        )
    load_weights(weights, network)
    logger.info("weights: %s", weights)
    used: set[str] = set()
    restored = []
    for case in cases:
        name = free_case_name(case["image"], used)
        used.add(name)
        volume = open_chunked_volume(case["image"])
        if volume.not_grey or volume.is_inverted:
            why = volume.not_grey or "larger values are darker (WhiteIsZero or an inverting palette); invert the image"
            raise UserError(f"{case['image']}: {why}")
        restored.append(restore_volume(volume, network, output_dir, name, sections, tile_size, preview))
    return restored


def restore_volume(
    volume: ChunkedVolume,
    network: SectionInterpolationNetwork,
    output_dir: str | Path,
    name: str,
    sections: Sequence[int] | None = None,
    tile_size: int = 512,
    preview: bool = True,
) -> Path:
    """Write ``NAME_restored.ome.zarr``, ``NAME_sections.csv`` and ``NAME_restored.png``, each whole or not at all.

    The volume is read twice, some sections at a time: memory does not grow with its depth.

    Args:
        volume: to restore; the new one has its type and voxel size.
        network: trained.
        output_dir: folder of the results.
        name: of the volume.
        sections: the noisy ones; ``None`` looks for them, see
            :func:`~resunet_mitoem.noisy_sections.find_noisy_sections`. Empty: none, the volume is copied.
        tile_size: see :func:`~resunet_mitoem.interpolation.interpolate_section`.
        preview: ``False`` leaves the picture out.

    Returns:
        the restored volume.

    Raises:
        UserError: a section that the volume does not have; none of those given has a clean one on both sides; or a file
            cannot be read or written.
    """
    depth = volume.shape[0]
    slab_depth = min(volume.chunks[0], DEFAULT_CHUNKS[0])
    logger.info("%s: %d sections of %d x %d pixels", volume.path, *volume.shape)
    assessments = assess_sections(volume, sections, slab_depth=slab_depth)
    noisy = [assessment.section for assessment in assessments if assessment.reasons]
    replacements = plan_restoration(noisy, depth)
    if sections and not replacements:
        raise UserError(
            f"{volume.path}: none of the sections can be restored, got {', '.join(map(str, noisy))} of {depth}; give "
            "sections with a clean one on both sides"
        )
    path = Path(output_dir) / f"{name}_restored.ome.zarr"
    with create_ome_zarr(path, volume.shape, volume.dtype, volume.voxel_size_nm) as voxels:
        # slabs of whole chunks: each is written once, and once more for each section restored in it
        replaced = [replacement.section for replacement in replacements]
        restore_sections(volume, network, replaced, voxels, tile_size, slab_depth=DEFAULT_CHUNKS[0])
    write_section_table(Path(output_dir) / f"{name}_sections.csv", assessments, replacements)
    if preview and replacements:
        restored = open_chunked_volume(path)
        save_restoration_preview(Path(output_dir) / f"{name}_restored.png", volume, restored, replacements, name)
    logger.info(
        "%s: %d of %d sections replaced, %d noisy ones stay. Segment it with inference.json --input %s",
        volume.path,
        len(replacements),
        depth,
        len(noisy) - len(replacements),
        path,
    )
    return path


def restore_sections(
    volume: Any,
    network: SectionInterpolationNetwork,
    noisy: Sequence[int] | None = None,
    output: Any = None,
    tile_size: int = 512,
    slab_depth: int = 8,
) -> Any:
    """Replace each noisy section by what the network makes of the nearest clean ones before and after it.

    The log says which section was replaced from which two, and which could not be.

    Args:
        volume: (D, H, W), an array or anything that is sliced like one. Whole numbers are scaled to [0, 1] for the
            network by the largest of their type, others must lie there.
        network: trained; it runs on the device it is on.
        noisy: indices along z; ``None`` looks for them (:func:`~resunet_mitoem.noisy_sections.find_noisy_sections`).
        output: where to write, of the volume's shape and type, for instance a Zarr array. It may be the volume itself:
            then only the restored sections are written. ``None`` makes a new array in memory.
        tile_size: see :func:`~resunet_mitoem.interpolation.interpolate_section`.
        slab_depth: sections to read at a time where all are read.

    Returns:
        ``output``, or the new array.

    Raises:
        UserError: a noisy section or an output that does not fit the volume.
        ValueError: ``tile_size`` is no multiple of the divisor.
    """
    depth = volume.shape[0]
    if output is None:
        output = np.empty(volume.shape, volume.dtype)
    if output.shape != volume.shape or output.dtype != volume.dtype:
        raise UserError(
            f"output must have type and shape of the volume, {volume.dtype} {tuple(volume.shape)}, got {output.dtype} "
            f"{tuple(output.shape)}"
        )
    if noisy is None:
        noisy = find_noisy_sections(volume, slab_depth=slab_depth)
    plan = plan_restoration(noisy, depth)
    if output is not volume:
        for start in range(0, depth, slab_depth):
            output[start : start + slab_depth] = volume[start : start + slab_depth]
    for section, before, after in plan:
        # slices: volumes on disk take no numbers
        first, second = (np.asarray(volume[index : index + 1])[0] for index in (before, after))
        output[section] = interpolate_section(network, first, second, tile_size)
        logger.info("Section %d replaced: interpolated from sections %d and %d", section, before, after)
    return output


def save_restoration_preview(
    path: str | Path,
    volume: ChunkedVolume,
    restored: ChunkedVolume,
    replacements: Sequence[Replacement],
    name: str,
) -> None:
    """Draw up to four restored sections, one per row: the neighbours it was made from, before and after restoration.

    A panel shows the middle of a section, at most 384 pixels wide. Grey values are drawn between the 0.5th and 99.5th
    percentile of the row's neighbours.

    Args:
        path: of the PNG.
        volume, restored: (D, H, W), sliced along all axes.
        replacements: at least one; of more than four, some that are spread over the depth.
        name: of the volume, for the title.
    """
    indices = np.linspace(0, len(replacements) - 1, min(len(replacements), PREVIEWED_SECTIONS)).round().astype(int)
    starts = [max(0, (size - PREVIEW_PIXELS) // 2) for size in volume.shape[1:]]
    rows, columns = (slice(start, start + PREVIEW_PIXELS) for start in starts)
    aspect = 1.0 if volume.voxel_size_nm is None else volume.voxel_size_nm[1] / volume.voxel_size_nm[2]
    height, width = (min(size, PREVIEW_PIXELS) for size in volume.shape[1:])
    figure = Figure(
        figsize=(12, 0.5 + len(indices) * (0.3 + 3 * aspect * height / width)), facecolor="black", layout="constrained"
    )
    grid = figure.subplots(len(indices), 4, squeeze=False)
    for axes_row, index in zip(grid, indices, strict=True):
        section, before, after = replacements[index]
        panels = [
            (f"section {before}", volume, before),
            (f"section {section} as it was", volume, section),
            (f"section {section} restored", restored, section),
            (f"section {after}", volume, after),
        ]
        pictures = [source[z : z + 1, rows, columns][0].astype(np.float32) for _, source, z in panels]
        low, high = np.percentile(np.stack([pictures[0], pictures[3]]), (0.5, 99.5))
        for axes, (title, _, _), picture in zip(axes_row, panels, pictures, strict=True):
            axes.imshow(
                picture, cmap="gray", vmin=low, vmax=max(high, low + 1e-6), aspect=aspect, interpolation="nearest"
            )
            axes.set_title(title, color="white", fontsize=9)
            axes.axis("off")
    figure.suptitle(f"{name}: {len(replacements)} sections restored", color="white", fontsize=11)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110)


def write_section_table(
    path: Path, assessments: Sequence[SectionAssessment], replacements: Sequence[Replacement]
) -> None:
    """Write a CSV of all sections; what is unknown is empty."""
    replaced = {replacement.section: replacement for replacement in replacements}
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for section, reasons, *scores in assessments:
            known = ["" if math.isnan(score) else f"{score:.2f}" for score in scores]
            neighbours = replaced[section][1:] if section in replaced else ("", "")
            writer.writerow([section, int(bool(reasons)), "; ".join(reasons), *known, *neighbours])
