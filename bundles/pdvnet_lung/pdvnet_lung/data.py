# SPDX-License-Identifier: Apache-2.0
"""Where the cases of a training or an evaluation come from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from volseg.data.datalist import load_datalist
from volseg.data.volume_reader import find_volumes
from volseg.phantoms.chest_ct import GENERATION, chest_ct
from volseg.phantoms.dataset import write_dataset

__all__ = ["datalist", "inference_list"]


def datalist(
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
    _write_phantoms(phantom_dir, phantom_cases, phantom_shape, phantom_seed)
    return load_datalist(phantom_dir, split)


def inference_list(
    input: str | None, phantom_dir: str, phantom_shape: Sequence[int], phantom_seed: int = 0
) -> list[dict[str, str]]:
    """Cases to segment: those that ``input`` stands for (see ``find_volumes``), or one phantom if it is empty.

    Returns:
        ``[{"image": path}, ...]``.
    """
    if input:
        return [{"image": str(path)} for path in find_volumes(input)]
    _write_phantoms(phantom_dir, {"test": 1}, phantom_shape, phantom_seed)
    return [{"image": case["image"]} for case in load_datalist(phantom_dir, "test")]


def _write_phantoms(folder: str, cases: Mapping[str, int], shape: Sequence[int], seed: int) -> None:
    x, y, z = shape
    write_dataset(
        Path(folder),
        lambda number: chest_ct(number, (x, y, z)),
        cases,
        seed=seed,
        name="chest CT phantoms",
        parameters={"shape": [x, y, z], "generation": GENERATION},
    )
