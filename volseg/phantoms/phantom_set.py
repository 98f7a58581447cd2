# SPDX-License-Identifier: Apache-2.0
"""Provide a bundle's cases from a data set, from files to segment, or from phantoms if neither is given."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from volseg.data.datalist import load_datalist
from volseg.data.find_volumes import find_volumes
from volseg.phantoms.dataset import NiftiPairs, Storage, write_dataset

__all__ = ["PhantomSet"]


@dataclass(frozen=True)
class PhantomSet:
    """The phantoms of a bundle, used when no data are given.

    Attributes:
        name: name of the data set in ``dataset.json`` and the progress bar.
        make_case: makes a phantom from a seed and a shape along its stored axes.
        generation: increased whenever a seed gives a different phantom, so that existing folders are made again.
        storage: layout of the phantoms on disk.
        find: returns the volumes that a user's path stands for.
    """

    name: str
    make_case: Callable[[int, tuple[int, int, int]], Any]
    generation: int
    storage: Storage = field(default_factory=NiftiPairs)
    find: Callable[[str], Sequence[Path]] = find_volumes

    def datalist(
        self,
        dataset_dir: str | None,
        split: str,
        phantom_dir: str,
        phantom_cases: Mapping[str, int],
        phantom_shape: Sequence[int],
        phantom_seed: int = 0,
    ) -> list[dict[str, str]]:
        """Return the cases of a split, from the data set or from phantoms generated at first use.

        Args:
            dataset_dir: folder with ``dataset.json``, as written by ``prepare_data``; empty for phantoms.
            split: ``"training"``, ``"validation"`` or ``"test"``.
            phantom_dir: folder of the phantoms.
            phantom_cases: number of phantoms per split.
            phantom_shape: voxels of a phantom along its stored axes.
            phantom_seed: different seeds give different phantoms.

        Returns:
            ``[{"image": path, "label": path}, ...]``.
        """
        if dataset_dir:
            return load_datalist(dataset_dir, split)
        self._write(phantom_dir, phantom_cases, phantom_shape, phantom_seed)
        return load_datalist(phantom_dir, split)

    def inference_list(
        self, input: str | None, phantom_dir: str, phantom_shape: Sequence[int], phantom_seed: int = 0
    ) -> list[dict[str, str]]:
        """Return the cases to segment: those of ``input``, or one phantom if it is empty.

        Returns:
            ``[{"image": path}, ...]``.
        """
        if input:
            return [{"image": str(path.absolute())} for path in self.find(input)]
        self._write(phantom_dir, {"test": 1}, phantom_shape, phantom_seed)
        return [{"image": case["image"]} for case in load_datalist(phantom_dir, "test")]

    def _write(self, folder: str, cases: Mapping[str, int], shape: Sequence[int], seed: int) -> None:
        first, second, third = shape
        write_dataset(
            Path(folder),
            lambda number: self.make_case(number, (first, second, third)),
            cases,
            seed=seed,
            name=self.name,
            parameters={"shape": [first, second, third], "generation": self.generation},
            storage=self.storage,
        )
