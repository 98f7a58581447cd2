# SPDX-License-Identifier: Apache-2.0
"""Pairs of volumes become 8-bit OME-Zarr images with instance ids inside, and ``dataset.json``."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from resunet_mitoem.data import LABEL_NAME, check_image
from resunet_mitoem.intensity import PERCENTILES, find_grey_range
from volseg.blockwise.grey_range import GreyRange
from volseg.data.datalist import SPLITS, write_datalist
from volseg.data.ome_zarr import DEFAULT_CHUNKS, create_ome_zarr, create_ome_zarr_label
from volseg.data.open_volume import ChunkedVolume
from volseg.data.prepare import Source, describe_skipped
from volseg.data.semantic_mask import SEMANTIC_MASK, is_semantic_mask, number_components
from volseg.data.volume_formats.voxel_size import VoxelSize
from volseg.data.volume_formats.zarr_volume import CHUNKS_WRITTEN, open_zarr
from volseg.errors import UserError
from volseg.transforms.load_em_volume import check_one_shape

logger = logging.getLogger(__name__)

# what archives are unpacked into, in the dataset folder
UNPACKED = "unpacked"
# attribute of a finished array: what it was made from, and what is told about it
_PREPARED = "prepared"
# the array in the folder of an image or label
_ARRAY = "0"
_MAX_ID = np.iinfo(np.uint32).max
_LOOKED_AT = 2**27  # voxels


@dataclass(frozen=True)
class Pair:
    """One volume to write: ``NAME.ome.zarr``; with ``label_components`` the labels are numbered anew."""

    name: str
    split: str
    image: ChunkedVolume
    label: ChunkedVolume | None
    voxel_size_nm: VoxelSize
    label_components: bool = False


def checked_pair(
    name: str,
    split: str,
    image: ChunkedVolume,
    label: ChunkedVolume | None,
    voxel_size_nm: VoxelSize | None,
    label_components: bool = False,
) -> Pair:
    """A pair of one shape, of types that can be converted, with an image that is no mask, and with a voxel size."""
    if label is not None:
        check_one_shape({str(image.path): image.shape, str(label.path): label.shape})
        if label.dtype.kind not in "bui":
            raise UserError(
                f"{label.path}: instance ids must be integers, got {label.dtype}; give a volume of an integer type"
            )
    if image.dtype.kind not in "uif" or (image.dtype.kind != "f" and image.dtype.itemsize > 2):
        raise UserError(
            f"{image.path}: grey values must be of 8 or 16 bits or floating point, got {image.dtype}, as colours are "
            "read too; give a grey image"
        )
    check_image(image)
    if voxel_size_nm is None:
        raise UserError(
            f'{image.path}: the file does not say its voxel size; give --voxel_size_nm "[30,8,8]" along z, y, x'
        )
    return Pair(name, split, image, label, voxel_size_nm, label_components)


@dataclass(frozen=True)
class _Store:
    """An OME-Zarr image, or a label in it, and how it is made.

    Attributes:
        path: its folder.
        source: what it is made from.
        voxel_size_nm: (z, y, x).
        write: writes it with a progress bar of sections and returns what is told about it.
        made_from: tells the source; kept with the array, as what is told about it is, to know it again.
    """

    path: Path
    source: ChunkedVolume
    voxel_size_nm: VoxelSize
    write: Callable[[_Store, tqdm[Any]], dict[str, Any]]
    made_from: dict[str, Any]


def write_dataset(
    source: Source, pairs: Sequence[Pair], output: Path, skipped: Mapping[str, int], split_rule: str
) -> Path:
    """Write the volumes that are not there yet, then ``dataset.json``; print what is there."""
    stores_of = {pair.name: _stores(pair, output) for pair in pairs}
    stores = [store for pair in pairs for store in stores_of[pair.name]]
    facts = {store.path: _find_facts(store) for store in stores}
    missing = [store for store in stores if facts[store.path] is None]
    with tqdm(total=sum(store.source.shape[0] for store in missing), desc=source.key, unit="section") as bar:
        for store in missing:
            facts[store.path] = store.write(store, bar)
    volumes = []
    entries: dict[str, list[dict[str, str]]] = {split: [] for split in SPLITS}
    for pair in pairs:
        paths = [store.path for store in stores_of[pair.name]]
        known = {key: value for path in paths for key, value in (facts[path] or {}).items()}
        volumes.append({"name": pair.name, "shape": pair.image.shape, "voxel_size_nm": pair.voxel_size_nm, **known})
        print(_summary(pair, known, is_kept=not any(store.path in paths for store in missing)))
        if pair.label:
            entries[pair.split].append({"image": str(paths[0]), "label": str(paths[1])})
    if entries["validation"] and not entries["test"]:
        entries["test"] = entries["validation"]
        split_rule += "; test is validation again, as no other volume has labels"
    info = {
        "name": source.name,
        "source": source.key,
        "licence": source.licence,
        "citation": source.citation,
        "split_rule": split_rule,
        "labels": f"instance ids of {LABEL_NAME}, 0 = background",
        "volumes": volumes,
        "images_without_labels": [stores_of[pair.name][0].path.name for pair in pairs if not pair.label],
    }
    path = write_datalist(output, entries, **info)
    counts = ", ".join(f"{split} {len(volumes)}" for split, volumes in entries.items())
    unpacked = output / UNPACKED
    print(
        f"{path}: volumes {len(volumes)} ({counts}; split: {split_rule}){describe_skipped(skipped, '; ')}; "
        f"licence: {source.licence}; cite: {source.citation}"
        f"{f'; {unpacked} is no longer needed' if unpacked.is_dir() else ''}"
    )
    return path


def _summary(pair: Pair, facts: Mapping[str, Any], is_kept: bool) -> str:
    shape, size = ("x".join(f"{n:g}" for n in numbers) for numbers in (pair.image.shape, pair.voxel_size_nm))
    parts = [f"{pair.name}: {shape} voxels of {size} nm (z, y, x)"]
    if pair.label:
        parts.append(f"{facts['instances']} instances, foreground {100 * facts['foreground_fraction']:.3g} %")
    else:
        parts.append("no labels")
    if facts["grey_values"]:
        low, high = facts["grey_values"]
        parts.append(
            f"{pair.image.dtype} brought to 8 bits: {low:g} to {high:g}, percentiles {PERCENTILES[0]} and "
            f"{PERCENTILES[1]} of sections of the whole volume, became 0 to 255"
        )
    return "; ".join([*parts, *(["kept from an earlier run"] if is_kept else [])])


def _stores(pair: Pair, output: Path) -> list[_Store]:
    """The image, then its label if there is one."""
    path = output / f"{pair.name}.ome.zarr"
    if path.resolve() in (pair.image.file_path.resolve(), *pair.image.file_path.resolve().parents):
        raise UserError(
            f"{path}: would replace the image that it is made from; choose a --dataset_dir other than {output}"
        )
    size = pair.voxel_size_nm
    stores = [_Store(path, pair.image, size, _write_image, _made_from(pair.image, size))]
    if pair.label:
        label_path = path / "labels" / LABEL_NAME
        made_from = _made_from(pair.label, size)
        if pair.label_components:
            write, made_from = _write_components, {**made_from, "label_components": True}
        else:
            write = _write_label
        stores.append(_Store(label_path, pair.label, size, write, made_from))
    return stores


def _made_from(volume: ChunkedVolume, voxel_size_nm: VoxelSize) -> dict[str, Any]:
    path = volume.file_path
    files = [path] if path.is_file() else [file for file in path.iterdir() if file.name[0] != "." and file.is_file()]
    return {
        "path": str(volume.path),
        "modified_ns": max((file.stat().st_mtime_ns for file in files), default=0),
        "shape": list(volume.shape),
        "dtype": str(volume.dtype),
        "voxel_size_nm": list(voxel_size_nm),
    }


def _find_facts(store: _Store) -> dict[str, Any] | None:
    """What is told about a volume that an earlier run finished from the same source; None: write it."""
    if not store.path.exists():
        return None
    array = store.path / _ARRAY
    prepared = open_zarr(array).attrs.asdict().get(_PREPARED) if array.is_dir() else None
    if isinstance(prepared, dict) and prepared.get("made_from") == store.made_from:
        return prepared["facts"]
    if store.path.parent.name == "labels":
        return None  # labels are mended while images stay: it is written again
    raise UserError(
        f"{store.path}: would be overwritten, though it was not made from {store.source.path} as it is now; choose "
        "another --dataset_dir, or remove that folder"
    )


def _write_image(store: _Store, bar: tqdm[Any]) -> dict[str, Any]:
    """Write an image as 8-bit OME-Zarr."""
    image = store.source
    grey_range = find_grey_range(image)
    is_kept = image.dtype == np.uint8 and not image.is_inverted
    convert = np.asarray if is_kept else partial(_to_bytes, grey_range=grey_range)
    grey_values = None if is_kept else [grey_range.low, grey_range.high]
    with create_ome_zarr(store.path, image.shape, np.uint8, store.voxel_size_nm) as voxels:
        _convert(image, voxels, convert, bar)
        return _finish(store, voxels, {"grey_values": grey_values})


def _write_label(store: _Store, bar: tqdm[Any]) -> dict[str, Any]:
    """Write instance ids as a label of 16 bits, or of 32 where they need them."""
    label = store.source
    dtype = np.uint16 if label.dtype.itemsize <= 2 else np.min_scalar_type(max(_largest_id(label), 2**8))
    ids: set[int] = set()
    n_foreground = 0

    def convert(section: NDArray[Any]) -> NDArray[Any]:
        nonlocal n_foreground
        foreground = section[section != 0]
        n_foreground += foreground.size
        if foreground.size and foreground.min() < 0:
            raise _wrong_ids(label, int(foreground.min()))
        ids.update(np.unique(foreground).tolist())
        return section

    with create_ome_zarr_label(store.path.parent.parent, store.path.name, dtype) as voxels:
        _convert(label, voxels, convert, bar)
        # where there is one id only, the first sections tell, as many as fit into memory
        if len(ids) == 1 and is_semantic_mask(voxels[: max(1, _LOOKED_AT // math.prod(label.shape[1:]))]):
            logger.warning("%s: %s", label.path, SEMANTIC_MASK)
        facts = {"instances": len(ids), "foreground_fraction": n_foreground / math.prod(label.shape)}
        return _finish(store, voxels, facts)


def _write_components(store: _Store, bar: tqdm[Any]) -> dict[str, Any]:
    """Write the connected components of a mask, which is in memory as a whole for it."""
    components = number_components(store.source[:])
    count = int(components.max())
    dtype = np.uint16 if count <= np.iinfo(np.uint16).max else np.uint32
    with create_ome_zarr_label(store.path.parent.parent, store.path.name, dtype) as voxels:
        voxels[:] = components.astype(dtype)
        bar.update(len(components))
        facts = {"instances": count, "foreground_fraction": np.count_nonzero(components) / components.size}
        return _finish(store, voxels, facts)


def _finish(store: _Store, voxels: Any, facts: dict[str, Any]) -> dict[str, Any]:
    """Note in a written array what tells that it is whole, and from what; return what is told about it."""
    voxels.attrs[CHUNKS_WRITTEN] = voxels.nchunks_initialized
    voxels.attrs[_PREPARED] = {"made_from": store.made_from, "facts": facts}
    return facts


def _largest_id(label: ChunkedVolume) -> int:
    """The largest id of a volume, which is read for it; its type may be far larger than that."""
    largest = max(int(sections.max()) for _, sections in _pieces(label, 0, label.shape[0]))
    if largest > _MAX_ID:
        raise _wrong_ids(label, largest)
    return largest


def _wrong_ids(label: ChunkedVolume, found: int) -> UserError:
    return UserError(f"{label.path}: instance ids must be from 0 to {_MAX_ID}, got {found}; renumber them")


def _to_bytes(section: NDArray[Any], grey_range: GreyRange) -> NDArray[np.uint8]:
    """Grey values brought to 0 to 255; what is not finite becomes 0."""
    return grey_range(section).mul_(255).round_().numpy().astype(np.uint8)


def _convert(
    volume: ChunkedVolume, voxels: Any, convert: Callable[[NDArray[Any]], NDArray[Any]], bar: tqdm[Any]
) -> None:
    """Write a volume by slabs of the chunks' depth; memory is that of one and a half, whatever the depth.

    Args:
        volume: to read.
        voxels: the Zarr array to write.
        convert: makes a section (H, W) of it from one of the volume.
        bar: counts sections.
    """
    depth, height, width = volume.shape
    slab_depth, band, _ = voxels.chunks
    slab = np.empty((slab_depth, height, width), voxels.dtype)
    for start in range(0, depth, slab_depth):
        stop = min(start + slab_depth, depth)
        for first, sections in _pieces(volume, start, stop):
            for z, section in enumerate(sections, first - start):
                slab[z] = convert(section)
                bar.update()
        for row in range(0, height, band):  # Zarr copies what it is given
            voxels[start:stop, row : row + band] = slab[: stop - start, row : row + band]


def _pieces(volume: ChunkedVolume, start: int, stop: int) -> Iterator[tuple[int, NDArray[Any]]]:
    """Sections ``start`` to ``stop`` as they are stored together: the number of the first, and (D, H, W)."""
    step = min(volume.chunks[0], DEFAULT_CHUNKS[0])
    for first in range(start, stop, step):
        yield first, volume[first : min(first + step, stop)]
