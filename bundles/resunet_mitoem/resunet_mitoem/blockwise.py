# SPDX-License-Identifier: Apache-2.0
"""Segment volumes larger than memory: what ``configs/inference_blockwise.json`` calls."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from resunet_mitoem.data import inference_list
from resunet_mitoem.intensity import find_grey_range
from resunet_mitoem.noisy_sections import Replacement, assess_sections, plan_restoration
from resunet_mitoem.restoration import write_section_table
from volseg.blockwise.cluster import connect
from volseg.blockwise.finished_blocks import FinishedBlocks
from volseg.blockwise.instance_files import local_file
from volseg.blockwise.segmentation import segment_blockwise
from volseg.blockwise.volume_opener import VolumeOpener, replace_sections
from volseg.blockwise.volume_prediction import VolumePrediction
from volseg.blockwise.worker_network import WorkerNetwork
from volseg.blockwise.zarr_array import local_folder, open_array
from volseg.console.option_checks import three_whole_numbers, whole_number
from volseg.data.resampling import ResampledVolume, network_shape
from volseg.data.volume_formats.voxel_size import checked_voxel_size, chosen_voxel_size
from volseg.errors import UserError
from volseg.handlers.instance_results import free_case_name, voxel_warnings
from volseg.inferers.sliding_window import BlendedSlidingWindow
from volseg.instances.decoding import Decoding
from volseg.instances.picture import save_instance_preview

__all__ = ["Restorer", "segment_volumes", "volume_list"]

logger = logging.getLogger(__name__)

SLAB_BYTES = 2**28  # of sections that the search for noisy ones reads at once

MAKE_SECTION = "resunet_mitoem.interpolation.interpolate_section"

_PLAN = "plan.json"


class Restorer:
    """Replaces noisy sections before the segmentation; only the new sections are stored.

    Args:
        network: the interpolation network.
        sections: the noisy ones; None looks for them.
        tile_size: see :func:`resunet_mitoem.interpolation.interpolate_section`.

    Raises:
        UserError: ``sections`` is not a list of integers.
    """

    def __init__(self, network: WorkerNetwork, sections: Sequence[int] | None = None, tile_size: int = 512) -> None:
        if sections is not None and not (
            isinstance(sections, list | tuple) and all(isinstance(section, int) for section in sections)
        ):
            raise UserError(f"sections must be a list of integers such as [3,17], got {sections!r}")
        self.network = network
        self.sections = None if sections is None else list(sections)
        self.tile_size = tile_size

    def __call__(self, open_volume: VolumeOpener, output: str, scheduler: str, workers: int | None) -> VolumeOpener:
        """What opens the volume with its noisy sections replaced.

        Args:
            open_volume: of the volume.
            output: folder for the new sections and ``sections.csv``, the table of all sections.
            scheduler, workers: see :func:`volseg.blockwise.cluster.connect`.

        Raises:
            UserError: no weights, a section outside the volume, or what a run by blocks raises.
        """
        self.network.check()
        plan = self._plan(open_volume, output)
        if not plan:
            return open_volume
        with connect(scheduler, workers, gpus=self.network.device != "cpu") as client:
            return replace_sections(
                open_volume, plan, output, self.network, MAKE_SECTION, {"tile_size": self.tile_size}, client
            )

    def _plan(self, open_volume: VolumeOpener, output: str) -> list[Replacement]:
        """Sections to replace with those they are made from; looked for once, as that reads the whole volume."""
        volume = open_volume.source()
        depth, height, width = volume.shape
        finished = FinishedBlocks(f"{output}/search")
        with finished.lock({**open_volume.parameters(), "sections": self.sections}):
            found = finished.read_json(_PLAN)
            if found is None:
                # chunks may be shards, of gigabytes in whole sections
                slab_depth = max(1, min(volume.chunks[0], SLAB_BYTES // (volume.dtype.itemsize * height * width)))
                assessments = assess_sections(volume, self.sections, slab_depth=slab_depth)
                plan = plan_restoration([found.section for found in assessments if found.reasons], depth)
                with local_file(f"{output}/sections.csv") as path:
                    write_section_table(path, assessments, plan)
                found = {"replacements": plan}
                finished.write_json(_PLAN, found)
        logger.info("%s: %d of %d sections are replaced", open_volume.location, len(found["replacements"]), depth)
        return [Replacement(*replacement) for replacement in found["replacements"]]


def volume_list(
    input: str, phantom_dir: str, phantom_shape: Sequence[int], phantom_seed: int = 0
) -> list[dict[str, str]]:
    """The volumes to segment, as :func:`resunet_mitoem.data.inference_list` finds them; or a URL, as it is.

    Args:
        input: what ``--input`` says: path, URL of a Zarr array or OME-Zarr image, or empty for a phantom.
        phantom_dir, phantom_shape, phantom_seed: of the phantom.

    Returns:
        ``[{"image": path or URL}, ...]``.

    Raises:
        UserError: no such file or folder.
    """
    if "://" in input:
        return [{"image": input}]
    return inference_list(input, phantom_dir, phantom_shape, phantom_seed)


def segment_volumes(
    cases: Sequence[Mapping[str, str]],
    network: WorkerNetwork,
    output_dir: str | Path,
    windows: BlendedSlidingWindow,
    decoding: Decoding,
    block_shape: Sequence[int],
    prediction_block_shape: Sequence[int] | None = None,
    restorer: Restorer | None = None,
    voxel_size_nm: Sequence[float] | None = None,
    trained_voxel_size_nm: Sequence[float] | None = None,
    resample: bool = False,
    scheduler: str = "",
    workers: int | None = None,
    keep_probabilities: bool = False,
    preview: bool = True,
) -> list[dict[str, Any]]:
    """Segment volumes one after another, each into ``OUTPUT_DIR/NAME``; see :func:`segment_blockwise`.

    Args:
        cases: ``image``, path or URL of a volume.
        network: with two outputs, mask and boundary.
        output_dir: folder or URL.
        windows: see :class:`volseg.blockwise.volume_prediction.VolumePrediction`.
        block_shape: voxels of a block (D, H, W) of the decoding.
        prediction_block_shape: of the prediction, where larger blocks save windows; None: the same.
        restorer: replaces noisy sections first; None leaves all as they are.
        voxel_size_nm: (z, y, x), in place of what files say.
        trained_voxel_size_nm: of the data that the weights learnt from.
        resample: whether the network sees volumes of another voxel size at that one.
        preview: draw ``preview.png``, see :func:`volseg.instances.picture.save_instance_preview`.
        decoding, scheduler, workers, keep_probabilities: see :func:`volseg.blockwise.segmentation.segment_blockwise`.

    Returns:
        the statistics of each volume.

    Raises:
        UserError: invalid options, before any work; no weights, or a volume or a block fails: one line.
    """
    block_shape = three_whole_numbers("block_shape", block_shape, 1, "[64,512,512]")
    if prediction_block_shape is not None:
        three_whole_numbers("prediction_block_shape", prediction_block_shape, 1, "[256,512,512]")
    if workers is not None:
        whole_number("workers", workers, 0)
    given_nm = checked_voxel_size(voxel_size_nm)
    trained_voxel_size_nm = checked_voxel_size(trained_voxel_size_nm, "trained_voxel_size_nm")
    network.check()
    folder = str(local_folder(output_dir) or output_dir).rstrip("/")
    used: set[str] = set()
    results = []
    for case in cases:
        open_volume = VolumeOpener.of(case["image"])
        image, volume = open_volume.location, open_volume.source()
        name = free_case_name(image, used)
        used.add(name)
        output = f"{folder}/{name}"
        size_nm = chosen_voxel_size(image, volume.voxel_size_nm, given_nm)
        logger.info("%s: %d sections of %d x %d pixels, results in %s", image, *volume.shape, output)
        for warning in voxel_warnings(size_nm, trained_voxel_size_nm, resample):
            logger.warning("%s: %s", image, warning)
        if resample and size_nm and trained_voxel_size_nm:
            shape = network_shape(image, volume.shape, size_nm, trained_voxel_size_nm)
            open_volume = replace(open_volume, network_shape=shape)
            volume = ResampledVolume(volume, shape) if shape else volume
        if restorer:
            open_volume = restorer(open_volume, f"{output}/restoration", scheduler, workers)
        prediction = VolumePrediction(
            open_volume,
            network,
            windows,
            prediction_block_shape or block_shape,
            grey_range=find_grey_range(volume),
            voxel_size_nm=size_nm,
        )
        statistics = segment_blockwise(
            prediction, output, decoding, block_shape, scheduler, workers, keep_probabilities
        )
        if preview:
            title = f"{name}: {statistics['instances']} instances"
            with local_file(f"{output}/preview.png") as path:
                save_instance_preview(
                    path, open_volume.on_own_grid(), open_array(f"{output}/instances.ome.zarr/0"), size_nm, title
                )
        logger.info("%s: %d instances, in %s/instances.ome.zarr", image, statistics["instances"], output)
        results.append({"image": image, "output": output, **statistics})
    return results
