# SPDX-License-Identifier: Apache-2.0
"""Phantoms as a data set: files with a MONAI data list, in place of data that are not given."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from volseg.console.option_checks import three_whole_numbers, whole_number
from volseg.data.datalist import DATALIST_NAME, load_datalist
from volseg.data.find_volumes import find_volumes
from volseg.data.ome_zarr import create_ome_zarr, create_ome_zarr_label
from volseg.errors import UserError
from volseg.storage.files import atomic_folder

__all__ = ["PhantomSet"]


class Storage(Protocol):
    """Layout of the cases of a data set on disk."""

    def files(self, split: str, index: int) -> dict[str, str]:
        """Return a case's entry in the data list: paths of ``image`` and ``label``, relative to the folder."""
        ...

    def save(self, folder: Path, files: Mapping[str, str], case: Any) -> None:
        """Write a phantom to the ``files`` of its entry, creating their folders."""
        ...


class NiftiPairs:
    """``images/<split>_<i>.nii.gz`` (int16) and ``labels/<split>_<i>.nii.gz`` (uint8).

    Phantoms need ``image`` and ``label`` of one shape (X, Y, Z) and an ``affine`` (4, 4), voxel to RAS in mm.
    """

    def files(self, split: str, index: int) -> dict[str, str]:
        return {kind: f"{kind}s/{split}_{index}.nii.gz" for kind in ("image", "label")}

    def save(self, folder: Path, files: Mapping[str, str], case: Any) -> None:
        for kind, dtype in (("image", np.int16), ("label", np.uint8)):
            path = folder / files[kind]
            path.parent.mkdir(exist_ok=True)
            _save_nifti(path, getattr(case, kind), case.affine, dtype)


class OmeZarrVolumes:
    """``<split>_<i>.ome.zarr`` with the label inside, chunked like large volumes.

    Phantoms need ``image`` and ``label`` of one shape (D, H, W) and ``voxel_size_nm`` (z, y, x).

    Args:
        label: name of the label within its image.
    """

    def __init__(self, label: str) -> None:
        self.label = label

    def files(self, split: str, index: int) -> dict[str, str]:
        image = f"{split}_{index}.ome.zarr"
        return {"image": image, "label": f"{image}/labels/{self.label}"}

    def save(self, folder: Path, files: Mapping[str, str], case: Any) -> None:
        path = folder / files["image"]
        with create_ome_zarr(path, case.image.shape, case.image.dtype, case.voxel_size_nm) as voxels:
            voxels[:] = case.image
        with create_ome_zarr_label(path, self.label, case.label.dtype) as voxels:
            voxels[:] = case.label


def write_dataset(
    folder: Path,
    make_case: Callable[[int], Any],
    splits: Mapping[str, int],
    seed: int = 0,
    name: str = "phantom",
    parameters: Mapping[str, Any] | None = None,
    storage: Storage | None = None,
) -> Path:
    """Write ``splits[name]`` cases per split to ``folder`` unless they are there already, and return the folder.

    ``folder/dataset.json`` lists the files of each case, as laid out by ``storage`` (:class:`NiftiPairs` by default),
    and records name, seed and ``parameters``, the JSON values that ``make_case`` depends on. A folder made with the
    same values is kept, one made with other values is replaced. Each case gets its own number, counted through the
    splits from a start that depends on ``seed``.

    ``folder`` holds all cases or none, even if the process is killed or two processes start at once.

    Raises:
        UserError: ``folder`` exists and was not written by this function; it is left untouched.
    """
    folder = Path(folder)
    storage = storage or NiftiPairs()
    wanted = _datalist(splits, seed, name, parameters or {}, storage)
    if _read(folder) == wanted:
        return folder
    with atomic_folder(folder, _is_phantom) as temporary:
        _write_cases(temporary, make_case, wanted, storage)
    return folder


def case_seeds(splits: Mapping[str, int], seed: int) -> dict[str, list[int]]:
    """Return the number of each case, unique within a data set and among data sets with different seeds.

    Raises:
        UserError: a split has a negative size, the seed is negative, or there are more than a million cases.
    """
    if min(splits.values(), default=0) < 0 or sum(splits.values()) > 1_000_000 or seed < 0:
        raise UserError(
            f"splits must have sizes >= 0, at most a million cases, and a seed >= 0, got {dict(splits)}, {seed}"
        )
    out, start = {}, seed * 1_000_000
    for split, count in splits.items():
        out[split] = list(range(start, start + count))
        start += count
    return out


def _datalist(
    splits: Mapping[str, int], seed: int, name: str, parameters: Mapping[str, Any], storage: Storage
) -> dict[str, Any]:
    case_seeds(splits, seed)
    header = {"name": name, "source": "phantom", "seed": seed, "parameters": dict(parameters)}
    if clash := set(header) & set(splits):
        raise UserError(
            f"splits must not be named like other keys of {DATALIST_NAME}, got {sorted(clash)}; choose another name"
        )
    files = {split: [storage.files(split, i) for i in range(count)] for split, count in splits.items()}
    # convert through JSON, because the result is compared with the content of a file
    return json.loads(json.dumps({**header, **files}))


def _read(folder: Path) -> dict[str, Any] | None:
    """Return the data list of ``folder``, or None if it cannot be read."""
    try:
        return json.loads((folder / DATALIST_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


def _is_phantom(folder: Path) -> bool:
    found = _read(folder)
    return isinstance(found, dict) and found.get("source") == "phantom"


def _write_cases(folder: Path, make_case: Callable[[int], Any], datalist: dict[str, Any], storage: Storage) -> None:
    splits = {key: len(value) for key, value in datalist.items() if isinstance(value, list)}
    seeds = case_seeds(splits, datalist["seed"])
    jobs = [(files, s) for split in splits for files, s in zip(datalist[split], seeds[split], strict=True)]
    for files, case_seed in tqdm(jobs, desc=datalist["name"], unit="case"):
        storage.save(folder, files, make_case(case_seed))
    (folder / DATALIST_NAME).write_text(json.dumps(datalist, indent=2) + "\n", encoding="utf-8")


def _save_nifti(path: Path, array: NDArray[Any], affine: NDArray[np.float64], dtype: type[np.generic]) -> None:
    if array.ndim != 3 or not np.array_equal(array.astype(dtype), array):
        raise ValueError(
            f"{path.name}: must have three axes and values that fit {np.dtype(dtype)}, got {array.dtype} {array.shape}"
        )
    image = nib.Nifti1Image(array.astype(dtype), affine)
    image.header.set_xyzt_units("mm")
    image.set_sform(affine, code=1)
    image.set_qform(affine, code=1)
    nib.save(image, path)


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
        sizes = three_whole_numbers("phantom_shape", shape, 1, "[128,128,64]", "the stored axes")
        write_dataset(
            Path(folder),
            lambda number: self.make_case(number, sizes),
            cases,
            seed=whole_number("phantom_seed", seed, 0),
            name=self.name,
            parameters={"shape": list(sizes), "generation": self.generation},
            storage=self.storage,
        )
