# SPDX-License-Identifier: Apache-2.0
"""Writes phantoms as a data set: a folder of image and label files and a MONAI datalist."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from volseg.data.datalist import DATALIST_NAME
from volseg.data.ome_zarr import create_ome_zarr, create_ome_zarr_label
from volseg.errors import UserError
from volseg.storage.files import atomic_folder


class Storage(Protocol):
    """How the cases of a data set lie on disk."""

    def files(self, split: str, index: int) -> dict[str, str]:
        """The entry of a case in the datalist: paths of ``image`` and ``label``, relative to the folder."""
        ...

    def save(self, folder: Path, files: Mapping[str, str], case: Any) -> None:
        """Write a phantom to the ``files`` of its entry; their folders may not exist yet."""
        ...


class NiftiPairs:
    """``images/<split>_<i>.nii.gz`` (int16) and ``labels/<split>_<i>.nii.gz`` (uint8).

    For phantoms with ``image`` and ``label`` of one shape (X, Y, Z) and ``affine`` (4, 4) from voxels to RAS mm.
    """

    def files(self, split: str, index: int) -> dict[str, str]:
        return {kind: f"{kind}s/{split}_{index}.nii.gz" for kind in ("image", "label")}

    def save(self, folder: Path, files: Mapping[str, str], case: Any) -> None:
        for kind, dtype in (("image", np.int16), ("label", np.uint8)):
            path = folder / files[kind]
            path.parent.mkdir(exist_ok=True)
            _save_nifti(path, getattr(case, kind), case.affine, dtype)


class OmeZarrVolumes:
    """``<split>_<i>.ome.zarr`` with the label inside, chunked as large volumes are.

    For phantoms with ``image`` and ``label`` of one shape (D, H, W) and ``voxel_size_nm`` (z, y, x).

    Args:
        label: name of the label in its image.
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
    """Write ``splits[name]`` cases per split below ``folder`` unless they are there already; return the folder.

    ``folder/dataset.json`` lists for each split the files of its cases, those of ``storage`` (:class:`NiftiPairs` if
    not given), beside name, seed and ``parameters`` (JSON values: whatever else ``make_case`` depends on). A folder
    made with the same values is left alone, one made with others is replaced. Each case gets its own number, counted
    through the splits from a start that depends on ``seed``.

    ``folder`` holds all cases or none, also when the process is killed or two of them start at once.

    Raises:
        UserError: ``folder`` exists and was not written by this function; nothing is touched then.
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
    """The number of each case; no two cases of a data set, nor of data sets with other seeds, share one.

    Raises:
        UserError: a split has a negative size, or there are more cases than numbers between two seeds.
    """
    if min(splits.values(), default=0) < 0 or sum(splits.values()) > 1_000_000 or seed < 0:
        raise UserError(f"splits need sizes >= 0, at most a million cases, and a seed >= 0; got {dict(splits)}, {seed}")
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
            f"a split cannot be called {sorted(clash)}: that key of {DATALIST_NAME} is taken; choose another name"
        )
    files = {split: [storage.files(split, i) for i in range(count)] for split, count in splits.items()}
    # Through JSON and back: what is compared later was read from a file.
    return json.loads(json.dumps({**header, **files}))


def _read(folder: Path) -> dict[str, Any] | None:
    """The datalist of ``folder``, or None where there is none that can be read."""
    try:
        return json.loads((folder / DATALIST_NAME).read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
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
        raise ValueError(f"{path.name}: needs three axes and values that {np.dtype(dtype)} holds; "
                         f"got shape {array.shape}, {array.dtype}")  # fmt: skip
    image = nib.Nifti1Image(array.astype(dtype), affine)
    image.header.set_xyzt_units("mm")
    image.set_sform(affine, code=1)
    image.set_qform(affine, code=1)
    nib.save(image, path)
