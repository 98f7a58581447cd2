# SPDX-License-Identifier: Apache-2.0
"""Segment volumes larger than memory: what ``configs/inference_blockwise.json`` calls."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from resunet_mitoem.data import inference_list
from resunet_mitoem.grey_range import find_grey_range
from resunet_mitoem.noisy_sections import SectionAssessment, assess_sections, find_noisy_sections, plan_restoration
from resunet_mitoem.restoration import write_section_table
from volseg.blockwise.block_grid import BlockGrid
from volseg.blockwise.cluster import connect
from volseg.blockwise.finished_blocks import FinishedBlocks
from volseg.blockwise.instance_files import local_file
from volseg.blockwise.pipeline import segment_blockwise
from volseg.blockwise.section_replacement import replace_sections
from volseg.blockwise.stored_array import local_folder, open_array
from volseg.blockwise.volume_opener import VolumeOpener
from volseg.blockwise.worker_network import WorkerNetwork
from volseg.console.option_checks import three_whole_numbers, whole_number
from volseg.data.volume_formats.voxel_size import chosen_voxel_size
from volseg.errors import UserError
from volseg.handlers.instance_results import checked_voxel_size, free_case_name, voxel_warnings
from volseg.inferers.sliding_window import BlendedSlidingWindow
from volseg.instances.decoding import Decoding
from volseg.instances.picture import save_instance_preview

__all__ = ["Restorer", "segment_volumes", "volume_list"]

logger = logging.getLogger(__name__)

SLAB_BYTES = 2**28  # of sections that the search for noisy ones reads at once

MAKE_SECTION = "resunet_mitoem.restore.interpolate_section"


class Restorer:
    """Replaces noisy sections before the segmentation; only the new sections are stored.

    Args:
        network: class of the interpolation network, or a :func:`functools.partial` of it.
        weights: its state dict.
        sections: the noisy ones; None looks for them.
        tile_size: see :func:`resunet_mitoem.restore.interpolate_section`.
        device: see :class:`~volseg.blockwise.worker_network.WorkerNetwork`.

    Raises:
        UserError: ``sections`` is no list of whole numbers.
    """

    def __init__(
        self,
        network: Callable[..., nn.Module],
        weights: str | Path,
        sections: Sequence[int] | None = None,
        tile_size: int = 512,
        device: str = "auto",
    ) -> None:
        self.network = WorkerNetwork.of(network, weights, device=device, runtime="eager")
        if sections is not None and not (
            isinstance(sections, list | tuple) and all(isinstance(section, int) for section in sections)
        ):
            raise UserError(f"sections: a list of whole numbers is needed. Received: {sections!r}. Give it as [3,17].")
        self.sections = None if sections is None else list(sections)
        self.tile_size = tile_size

    def __call__(self, open_volume: VolumeOpener, output: str, scheduler: str, workers: int | None) -> VolumeOpener:
        """What opens the volume with its noisy sections replaced.

        Args:
            open_volume: of the volume.
            output: folder for the new sections and ``sections.csv``, the table of all sections.
            scheduler, workers: see :func:`volseg.blockwise.cluster.connect`.

        Raises:
            UserError: no weights, a section that is none, or what a run by blocks raises.
        """
        self.network.check()
        plan = self._plan(open_volume, output)
        if not plan:
            return open_volume
        with connect(scheduler, workers, gpus=self.network.device != "cpu") as client:
            return replace_sections(
                open_volume, plan, output, self.network, MAKE_SECTION, {"tile_size": self.tile_size}, client
            )

    def _plan(self, open_volume: VolumeOpener, output: str) -> list[tuple[int, int, int]]:
        """Sections to replace with those they are made from; looked for once, as that reads the whole volume."""
        volume = open_volume.source()
        depth = volume.shape[0]
        finished = FinishedBlocks(f"{output}/search")
        (whole,) = BlockGrid(volume.shape, volume.shape)
        with finished.run({**open_volume.parameters(), "sections": self.sections}):
            if not finished.numbers("search"):
                if self.sections is None:
                    # chunks may be shards, of gigabytes in whole sections
                    section_bytes = volume.dtype.itemsize * volume.shape[1] * volume.shape[2]
                    slab_depth = max(1, min(volume.chunks[0], SLAB_BYTES // section_bytes))
                    assessments = assess_sections(volume, slab_depth=slab_depth)
                else:
                    given = find_noisy_sections(volume, self.sections)
                    assessments = [
                        SectionAssessment(section, ("given",) if section in given else (), np.nan, np.nan)
                        for section in range(depth)
                    ]
                plan = plan_restoration([found.section for found in assessments if found.reasons], depth)
                with local_file(f"{output}/sections.csv") as path:
                    write_section_table(path, assessments, plan)
                finished.write("search", whole, {"plan": np.array(plan, np.int64).reshape(-1, 3)})
            (stored,) = finished.read("search", whole, "plan")
        logger.info("%s: %d of %d sections are replaced", open_volume.location, len(stored), depth)
        return [(section, before, after) for section, before, after in stored.tolist()]


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
    network: Callable[..., nn.Module],
    weights: str | Path,
    output_dir: str | Path,
    windows: BlendedSlidingWindow,
    decoding: Decoding,
    block_shape: Sequence[int],
    prediction_block_shape: Sequence[int] | None = None,
    restorer: Restorer | None = None,
    voxel_size_nm: Sequence[float] | None = None,
    trained_voxel_size_nm: Sequence[float] | None = None,
    device: str = "auto",
    runtime: str = "auto",
    scheduler: str = "",
    workers: int | None = None,
    keep_probabilities: bool = False,
    preview: bool = True,
) -> list[dict[str, Any]]:
    """Segment volumes one after another, each into ``OUTPUT_DIR/NAME``; see :func:`segment_blockwise`.

    Args:
        cases: ``image``, path or URL of a volume.
        network: class of the network, or a :func:`functools.partial` of it.
        weights: its state dict.
        output_dir: folder or URL.
        restorer: replaces noisy sections first; None leaves all as they are.
        device, runtime: see :class:`volseg.blockwise.worker_network.WorkerNetwork`.
        voxel_size_nm: (z, y, x), in place of what files say.
        trained_voxel_size_nm: of the data that the weights learnt from; volumes whose voxels differ get a warning.
        preview: draw ``preview.png``, see :func:`volseg.instances.picture.save_instance_preview`.
        windows, decoding, block_shape, prediction_block_shape, scheduler, workers, keep_probabilities: see
            :func:`volseg.blockwise.pipeline.segment_blockwise`.

    Returns:
        the statistics of each volume.

    Raises:
        UserError: options that are none, before any work; no weights, a volume or a block fails: one line.
    """
    block_shape = three_whole_numbers("block_shape", block_shape, 1, "[64,512,512]")
    if workers is not None:
        whole_number("workers", workers, 0)
    if prediction_block_shape is not None:
        three_whole_numbers("prediction_block_shape", prediction_block_shape, 1, "[256,512,512]")
    given_nm = None if voxel_size_nm is None else checked_voxel_size(voxel_size_nm)
    on_worker = WorkerNetwork.of(network, weights, device=device, runtime=runtime)
    on_worker.check()
    folder = str(local_folder(output_dir) or output_dir).rstrip("/")
    used: set[str] = set()
    results = []
    for case in cases:
        open_volume = VolumeOpener.of(case["image"])
        volume = open_volume.source()
        name = free_case_name(open_volume.location, used)
        used.add(name)
        output = f"{folder}/{name}"
        size_nm = chosen_voxel_size(open_volume.location, volume.voxel_size_nm, given_nm)
        logger.info("%s: %d sections of %d x %d pixels, results in %s", open_volume.location, *volume.shape, output)
        for warning in voxel_warnings(size_nm, trained_voxel_size_nm):
            logger.warning("%s: %s", open_volume.location, warning)
        restored = restorer(open_volume, f"{output}/restoration", scheduler, workers) if restorer else open_volume
        segment = partial(
            segment_blockwise,
            restored,
            output,
            on_worker,
            windows,
            decoding,
            block_shape,
            prediction_block_shape,
            find_grey_range(volume),
            size_nm,
        )
        statistics = segment(scheduler=scheduler, workers=workers, keep_probabilities=keep_probabilities)
        if preview:
            title = f"{name}: {statistics['instances']} instances"
            with local_file(f"{output}/preview.png") as path:
                save_instance_preview(path, restored(), open_array(f"{output}/instances.ome.zarr/0"), size_nm, title)
        logger.info("%s: %d instances, in %s/instances.ome.zarr", open_volume.location, statistics["instances"], output)
        results.append({"image": open_volume.location, "output": output, **statistics})
    return results
