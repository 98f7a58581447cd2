# SPDX-License-Identifier: Apache-2.0
"""New sections in place of some of a volume, as a stage of a run by blocks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from distributed import Client

from volseg.blockwise.block_grid import Block, BlockGrid
from volseg.blockwise.stages import run_stage
from volseg.blockwise.volume_opener import RESTORATION, Replacements, VolumeOpener
from volseg.blockwise.worker_network import WorkerNetwork
from volseg.blockwise.zarr_array import write_region

__all__ = ["replace_sections"]


def replace_sections(
    open_volume: VolumeOpener,
    plan: Sequence[tuple[int, int, int]],
    output: str | Path,
    network: WorkerNetwork,
    function: str,
    arguments: Mapping[str, Any],
    client: Client | None = None,
    progress: bool = True,
) -> VolumeOpener:
    """Make some sections of a volume again, each from two others, and store only these.

    A section is one block: memory is that of three sections.

    Args:
        open_volume: of the volume.
        plan: of each section its index along z, and those of the two it is made from; at least one.
        output: folder, path or URL.
        network: that makes them.
        function: dotted name of a function that is called with the network, the two sections (H, W) and ``arguments``
            and returns a section.
        arguments: further ones, by name.
        client: of a Dask cluster; None works in this process.
        progress: show a bar of the sections.

    Returns:
        what opens the volume with its new sections.

    Raises:
        UserError: another run is at work there or had other parameters, or a section fails: one line that names it.
    """
    volume = open_volume.source()
    replacements = Replacements(tuple((int(a), int(b), int(c)) for a, b, c in plan), f"{output}/sections.zarr")
    grid = BlockGrid((len(replacements.plan), *volume.shape[1:]), (1, *volume.shape[1:]))
    finished = replacements.finished
    parameters = {
        **open_volume.parameters(),
        "plan": replacements.plan,
        "function": function,
        "arguments": dict(arguments),
        **network.parameters(),
    }
    with finished.lock(parameters):
        array = replacements.open_or_create(volume, bool(finished.numbers(RESTORATION)))
        stage = _SectionStage(open_volume, network, function, dict(arguments), replacements, array)
        run_stage(client, RESTORATION, stage, grid, finished, progress)
    return replace(open_volume, replacements=replacements)


@dataclass(frozen=True)
class _SectionStage:
    """Makes one section."""

    open_volume: VolumeOpener
    network: WorkerNetwork
    function: str
    arguments: dict[str, Any]
    replacements: Replacements
    array: Any

    def __call__(self, block: Block) -> dict[str, np.ndarray]:
        network, _ = self.network.build()
        volume = self.open_volume.source()
        _, *neighbours = self.replacements.plan[block.number]
        before, after = (volume[z : z + 1][0] for z in neighbours)
        module, _, name = self.function.rpartition(".")
        section = getattr(import_module(module), name)(network, before, after, **self.arguments)
        write_region(self.array, block.core, section[None])
        return {}
