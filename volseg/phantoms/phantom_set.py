# SPDX-License-Identifier: Apache-2.0
"""Where a bundle's cases come from: a data set, files to segment, or phantoms where there is neither."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from volseg.data.datalist import load_datalist
from volseg.data.volume_reader import find_volumes
from volseg.phantoms.dataset import Case, write_dataset

__all__ = ["PhantomSet"]


@dataclass(frozen=True)
class PhantomSet:
    """The phantoms of a bundle, which stand in for data where none is given.

    Attributes:
        name: of the data set, as its ``dataset.json`` and the progress bar call it.
        make_case: makes the phantom of a seed and a shape (X, Y, Z).
        generation: raised whenever the same seed gives another phantom, so that folders made before are made again.
    """

    name: str
    make_case: Callable[[int, tuple[int, int, int]], Case]
    generation: int

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
        """Cases to segment: those that ``input`` stands for (see ``find_volumes``), or one phantom if it is empty.

        Returns:
            ``[{"image": path}, ...]``.
        """
        if input:
            return [{"image": str(path)} for path in find_volumes(input)]
        self._write(phantom_dir, {"test": 1}, phantom_shape, phantom_seed)
        return [{"image": case["image"]} for case in load_datalist(phantom_dir, "test")]

    def _write(self, folder: str, cases: Mapping[str, int], shape: Sequence[int], seed: int) -> None:
        x, y, z = shape
        write_dataset(
            Path(folder),
            lambda number: self.make_case(number, (x, y, z)),
            cases,
            seed=seed,
            name=self.name,
            parameters={"shape": [x, y, z], "generation": self.generation},
        )
