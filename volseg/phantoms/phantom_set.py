# SPDX-License-Identifier: Apache-2.0
"""Where a bundle's cases come from: a data set, files to segment, or phantoms where there is neither."""

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
    """The phantoms of a bundle, which stand in for data where none is given.

    Attributes:
        name: of the data set, as its ``dataset.json`` and the progress bar call it.
        make_case: makes the phantom of a seed and a shape along its stored axes.
        generation: raised whenever the same seed gives another phantom, so that folders made before are made again.
        storage: how phantoms lie on disk.
        find: the volumes that a path given by a user stands for.
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
        """Cases of a split: of the data set, or of phantoms that are generated at first use if there is no data set.

        Args:
            dataset_dir: folder with ``dataset.json``, as ``prepare_data`` writes it; empty for phantoms.
            split: ``"training"``, ``"validation"`` or ``"test"``.
            phantom_dir: folder of the phantoms.
            phantom_cases: number of phantoms in each split.
            phantom_shape: voxels of a phantom along its stored axes.
            phantom_seed: phantoms of different seeds are different phantoms.

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
        """Cases to segment: those that ``input`` stands for, or one phantom if it is empty.

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
