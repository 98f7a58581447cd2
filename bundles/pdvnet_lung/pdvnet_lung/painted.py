# SPDX-License-Identifier: Apache-2.0
"""Chest CTs painted on lobe maps: what the practical recipe trains, validates and is tested on."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.transforms import Randomizable, Transform
from monai.utils import MAX_SEED
from numpy.typing import NDArray

from volseg.data.datalist import load_datalist
from volseg.errors import UserError
from volseg.phantoms.dataset import write_dataset
from volseg.phantoms.geometry import Grid
from volseg.phantoms.painted_ct.lobe_map import LobeMap, Patient, procedural_lobe_map, read_lobe_map
from volseg.phantoms.painted_ct.painting import paint_chest_ct
from volseg.phantoms.painted_ct.scanner import scan

__all__ = ["PaintChest", "PaintedCT", "RandPaintChest", "ReadLobeMap", "lobe_maps", "paint_clinical", "painted_list"]

# raised whenever the same map gives another painting, so that folders painted before are painted again
GENERATION = 2
SLICES_MM = (1.5, 2.0, 2.5, 3.0, 5.0)

TEST_MAPS, VALIDATION_MAPS, PROCEDURAL_MAPS = 20, 12, 64
_PROCEDURAL = "procedural-"


def lobe_maps(label_maps: str | None, split: str) -> list[dict[str, str]]:
    """Lobe maps of a split.

    Of a folder, the 20 files whose names have the lowest SHA-256 are for the test, the next 12 for validation and
    the others for training. A folder with fewer than 64 maps is divided in the same proportions.

    Args:
        label_maps: folder of NIfTI lobe maps; empty for procedural anatomy.
        split: ``"training"``, ``"validation"`` or ``"test"``.

    Returns:
        ``[{"lobe_map": path or number of a procedural map}, ...]``.

    Raises:
        UserError: the folder is missing or holds too few maps.
    """
    if label_maps:
        folder = Path(label_maps).expanduser()
        names = sorted(str(path) for path in folder.glob("*.nii.gz"))
        if len(names) < len(("training", "validation", "test")):
            raise UserError(
                f"label_maps: {folder} holds {len(names)} lobe maps (*.nii.gz), at least 3 are needed; "
                "write the folder with configs/prepare_data.json"
            )
    else:
        names = [f"{_PROCEDURAL}{number}" for number in range(PROCEDURAL_MAPS)]
    ranked = sorted(names, key=lambda name: hashlib.sha256(Path(name).name.encode()).hexdigest())
    test = min(TEST_MAPS, max(1, len(ranked) * TEST_MAPS // 64))
    validation = min(VALIDATION_MAPS, max(1, len(ranked) * VALIDATION_MAPS // 64))
    parts = {
        "test": ranked[:test],
        "validation": ranked[test : test + validation],
        "training": ranked[test + validation :],
    }
    return [{"lobe_map": name} for name in sorted(parts[split])]


@dataclass(frozen=True)
class PaintedCT:
    """A chest CT along R, A, S: ``image`` int16, ``label`` uint8, ``affine`` to mm."""

    image: NDArray[np.int16]
    label: NDArray[np.uint8]
    affine: NDArray[np.float64]


def painted_list(
    dataset_dir: str | None, label_maps: str | None, painted_dir: str, split: str = "test"
) -> list[dict[str, str]]:
    """Cases to evaluate: of a data set, or the maps of a split as CTs at clinical spacings, painted at first use.

    Args:
        dataset_dir: folder with ``dataset.json``; empty for paintings.
        label_maps, split: see :func:`lobe_maps`.
        painted_dir: folder of the paintings.

    Returns:
        ``[{"image": path, "label": path}, ...]``.
    """
    if dataset_dir:
        return load_datalist(dataset_dir, split)
    maps = [case["lobe_map"] for case in lobe_maps(label_maps, split)]
    write_dataset(
        Path(painted_dir),
        lambda number: paint_clinical(maps[number]),
        {split: len(maps)},
        name="painted chest CTs",
        parameters={"maps": [Path(name).name for name in maps], "generation": GENERATION},
    )
    return load_datalist(painted_dir, split)


def paint_clinical(name: str, below_mm: float = 0, above_mm: float = 0) -> PaintedCT:
    """Paint a lobe map, undeformed, with pixels of 1 to 1.6 mm and slices of 1.5 to 5 mm; its name decides the draw.

    Args:
        name: see :func:`lobe_maps`.
        below_mm, above_mm: how much farther than a chest CT the field of view reaches.
    """
    case = ReadLobeMap()({"lobe_map": name})
    rng = _named_rng(case["case"])
    patient = Patient(LobeMap(case["lobe_map"]), rng, strength=0)
    low, high = patient.bounds_mm()
    plane, thick = rng.uniform(1.0, 1.6), float(rng.choice(SLICES_MM))
    # a thick slice is the mean of thinner ones
    parts = 3 if thick > 3 else 1
    low = low - np.array([30, 45, rng.uniform(10, 80)])
    high = high + np.array([30, 30, rng.uniform(10, 60)])
    low[2] -= thick * round(below_mm / thick)  # so that other fields of view of one chest share their slices
    high[2] += above_mm
    slices = int(np.ceil((high[2] - low[2]) / thick))
    shape = (int((high[0] - low[0]) / plane), int((high[1] - low[1]) / plane), slices * parts)
    grid = Grid(shape, np.array([plane, plane, thick / parts]), (low + high) / 2)
    hu, label = paint_chest_ct(patient, grid, rng, body_step_mm=3.0)
    hu = hu.reshape(*shape[:2], slices, parts).mean(axis=3)
    hu = scan(hu, np.array([plane, plane, thick]), rng, thick_slices=False)
    affine = np.diag([plane, plane, thick, 1.0])
    affine[:3, 3] = low
    return PaintedCT(hu.astype(np.int16), label[:, :, parts // 2 :: parts], affine)


def _named_rng(name: str) -> np.random.Generator:
    return np.random.default_rng(list(hashlib.sha256(name.encode()).digest()[:8]))


class ReadLobeMap(Transform):
    """Replace the path or number of ``lobe_map`` by the smoothed shares of the lobes, and add its name as ``case``."""

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        name = str(data["lobe_map"])
        number = name.removeprefix(_PROCEDURAL)
        lungs = procedural_lobe_map(int(number)) if number != name else read_lobe_map(name)
        # half precision: the cache of 250 maps takes 3 GB
        return {**data, "case": Path(name).name.removesuffix(".nii.gz"), "lobe_map": lungs.shares.half()}


class PaintChest(Transform):
    """Paint a lobe map onto the network's grid: ``image`` in HU and ``label``, both ``(1, *spatial_size)``.

    The grid covers the box around the lungs with a margin, as inference crops a CT. The draw depends on the name of the
    case alone.

    Args:
        spatial_size: voxels of the grid.
    """

    def __init__(self, spatial_size: Sequence[int]) -> None:
        self.spatial_size = (int(spatial_size[0]), int(spatial_size[1]), int(spatial_size[2]))

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        return self.paint(data, _named_rng(str(data["case"])))

    def paint(self, data: Mapping[Hashable, Any], rng: np.random.Generator) -> dict[Hashable, Any]:
        """Paint what ``rng`` draws."""
        patient = Patient(LobeMap(data["lobe_map"]), rng)
        low, high = _field_of_view(*patient.bounds_mm(), rng)
        size = np.array(self.spatial_size)
        grid = Grid(self.spatial_size, (high - low) / size, (low + high) / 2)
        sick = 0.0 if rng.random() < 0.3 else 1.0
        hu, label = paint_chest_ct(patient, grid, rng, body_step_mm=5.0, sick=sick)
        hu = scan(hu, grid.spacing, rng)
        return {"image": torch.from_numpy(hu)[None], "label": torch.from_numpy(label)[None]}


class RandPaintChest(PaintChest, Randomizable):
    """:class:`PaintChest` with another draw each time."""

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        return self.paint(data, np.random.default_rng(self.R.randint(MAX_SEED, dtype=np.uint32)))


def _field_of_view(low: np.ndarray, high: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A box around the lungs as a coarse look finds it: sometimes too wide, or cut as the scan is."""
    margin = np.clip(rng.normal(10, 5, (2, 3)), -3, 30)
    for face in np.ndindex(2, 3):
        chance = rng.random()
        if chance < 0.03:
            margin[face] = -rng.uniform(0.03, 0.4) * (high - low)[face[1]]
        elif chance < 0.07:
            margin[face] = rng.uniform(30, 90)
    return low - margin[0], high + margin[1]
