# SPDX-License-Identifier: Apache-2.0
"""MitoEM as distributed, or pairs of one's own, become a dataset folder of OME-Zarr volumes with ``dataset.json``.

Each image is written as 8-bit OME-Zarr and its instance ids as a label inside of it, some sections at a time, so that
training reads crops of volumes that are larger than memory. Volumes land whole or not at all and ``dataset.json`` comes
last: a run that was killed is started again and keeps the volumes that are finished. See :mod:`volseg.data.prepare`
for what holds for every data set.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from resunet_mitoem.data import LABEL_NAME
from resunet_mitoem.intensity import PERCENTILES
from volseg.data.archive import unpack
from volseg.data.chunked_volume import ChunkedVolume, open_chunked_volume
from volseg.data.datalist import SPLITS, write_datalist
from volseg.data.ome_zarr import DEFAULT_CHUNKS, create_ome_zarr, create_ome_zarr_label
from volseg.data.prepare import Source, check_arguments, check_folders, describe_skipped
from volseg.data.stored_volume import unreadable
from volseg.data.volume_formats.section_volume import SectionVolume
from volseg.data.volume_formats.voxel_size import VoxelSize
from volseg.data.volume_formats.zarr_volume import open_zarr
from volseg.errors import UserError
from volseg.transforms.load_chunked import check_one_shape

__all__ = ["PARTS", "SOURCES", "Part", "prepare_data", "prepare_mitoem", "prepare_volumes"]

PAIRS_NAME = "pairs.json"
_PAIRS = '[{"image": path, "label": path, "split": "training"}, ...]'

SOURCES = {
    "mitoem": Source(
        key="mitoem",
        name="MitoEM, mitochondria in electron microscopy of rat and human cortex",
        layout="EM30-R-im.zip and EM30-R-mito-train-val-v2.zip, or folders im/ with im0000.png, mito-train-v2/ and "
        "mito-val-v2/ with seg0000.tif under a folder whose name says MitoEM-R, EM30-R or rat; likewise H or human",
        licence="MIT, as its card says",
        citation="Wei et al. 2020, doi:10.1007/978-3-030-59722-1_7",
    ),
    "volumes": Source(
        key="volumes",
        name="pairs of images and instance labels",
        layout=f"{PAIRS_NAME}: {_PAIRS}",
        licence="that of the volumes",
        citation="the source of the volumes",
    ),
}

MITOEM_VOXEL_SIZE_NM = (30.0, 8.0, 8.0)


@dataclass(frozen=True)
class Part:
    """Consecutive sections of both volumes of MitoEM.

    Attributes:
        name: of the part; ``training`` and ``validation`` are splits.
        first: number of its first section, in the names of the files.
        n_sections: how many there are.
        label_folder: holds its labels; None: they are not published.
    """

    name: str
    first: int
    n_sections: int
    label_folder: str | None

    @property
    def numbers(self) -> range:
        """Numbers of its sections."""
        return range(self.first, self.first + self.n_sections)


PARTS = (
    Part("training", 0, 400, "mito-train-v2"),
    Part("validation", 400, 100, "mito-val-v2"),
    Part("test", 500, 500, None),
)


@dataclass(frozen=True)
class _Files:
    """How the sections of an image or of a label are distributed: ``folder/file``, by their numbers, in an archive."""

    folder: str
    file: str
    archive: str


_IMAGES = _Files("im", "im{:04d}.png", "EM30-{}-im.zip")
_LABEL_FILE = "seg{:04d}.tif"
_LABEL_ARCHIVE = "EM30-{}-mito-train-val-v2.zip"
# what archives are unpacked into, in the dataset folder
_UNPACKED = "unpacked"
# A section is 4096 x 4096 pixels; as ids of four bytes 64 MiB.
_MAX_FILE_BYTES = 128 * 2**20

_LETTERS = {"rat": "R", "human": "H"}
_SPECIMENS = {
    specimen: re.compile(rf"(?:em30|mitoem)[-_ ]?{letter}(?![a-z])|(?<![a-z]){specimen}(?![a-z])", re.IGNORECASE)
    for specimen, letter in _LETTERS.items()
}

# attribute of a finished array: what it was made from, and what is told about it
_PREPARED = "prepared"
# the array in the folder of an image or label
_ARRAY = "0"
_MAX_ID = np.iinfo(np.uint32).max
# sections and pixels of a volume, at most, that its percentiles are taken from
_SAMPLED_SECTIONS = 16
_SAMPLED_PIXELS = 2**24
_SUFFIXES = re.compile(r"\.(?:ome\.zarr|zarr|nii\.gz|nii|h5|hdf5?|tiff?|json|png)(?=$|:)", re.IGNORECASE)


@dataclass(frozen=True)
class _Pair:
    """One volume to write: ``NAME.ome.zarr``."""

    name: str
    split: str
    image: ChunkedVolume
    label: ChunkedVolume | None
    voxel_size_nm: VoxelSize


def prepare_data(
    source: str | None,
    input_dir: str | Path | None,
    dataset_dir: str | Path | None,
    voxel_size_nm: Sequence[float] | None = None,
    with_test: bool = False,
) -> Path:
    """Turn volumes into a dataset folder; this is what ``configs/prepare_data.json`` calls.

    Args:
        source: ``mitoem`` or ``volumes``.
        input_dir: of ``mitoem`` the download, archives or unpacked; of ``volumes`` the folder with ``pairs.json``.
        dataset_dir: where the dataset folder is written.
        voxel_size_nm: of ``volumes``: (z, y, x), where files do not say it.
        with_test: of ``mitoem``: write the images of sections 500 to 999 too, whose labels are not published.

    Returns:
        Path of ``dataset.json``.

    Raises:
        UserError: an argument is missing or wrong, or a file is not what it should be.
    """
    check_arguments(SOURCES, source, input_dir, dataset_dir)
    if source == "mitoem":
        return prepare_mitoem(str(input_dir), str(dataset_dir), with_test=with_test)
    return prepare_volumes(str(input_dir), str(dataset_dir), voxel_size_nm=voxel_size_nm)


def prepare_mitoem(
    input_dir: str | Path, dataset_dir: str | Path, with_test: bool = False, parts: Sequence[Part] = PARTS
) -> Path:
    """MitoEM-R (rat) and MitoEM-H (human), one or both; see :func:`prepare_data`.

    Sections 0 to 399 are ``training``, 400 to 499 ``validation``, as published. Labels of the others are not published,
    so ``test``, which an evaluation reads, is the validation volume again. Folders are looked for in ``input_dir`` and
    two levels deeper, then archives; of these the sections that are needed are unpacked into ``unpacked/`` of the
    dataset folder.

    Args:
        input_dir: the download; names of files and folders in it, or its own, say which volume is which.
        dataset_dir: where the dataset folder is written.
        with_test: write the images without labels too; they are listed under ``images_without_labels``.
        parts: sections that are published.
    """
    source = SOURCES["mitoem"]
    root, output = check_folders(source, input_dir, dataset_dir)
    skipped: Counter[str] = Counter()
    pairs: list[_Pair] = []
    for specimen in _LETTERS:
        pairs += _mitoem_pairs(specimen, root, output, [p for p in parts if p.label_folder or with_test], skipped)
    if not any(pair.label for pair in pairs):
        raise UserError(
            f"input_dir: no images with labels. Received: {root}{describe_skipped(skipped, ', ')}. "
            f"Expected: {source.layout}"
        )
    if not with_test:
        skipped["test part, which has no published labels (--with_test True writes its images)"] += 1
    numbers = ", ".join(f"{p.name} sections {p.first} to {p.numbers[-1]}" for p in parts if p.label_folder)
    return _write_dataset(source, pairs, output, skipped, f"official: {numbers}")


def prepare_volumes(
    input_dir: str | Path, dataset_dir: str | Path, voxel_size_nm: Sequence[float] | None = None
) -> Path:
    """Pairs of one's own, in any format of :func:`volseg.data.chunked_volume.open_chunked_volume`.

    ``pairs.json`` in ``input_dir`` lists them: ``[{"image": path, "label": path, "split": "training"}, ...]``, paths
    from that folder or absolute. Without a ``test`` entry, the validation volumes are ``test`` as well. See
    :func:`prepare_data`.
    """
    source = SOURCES["volumes"]
    root, output = check_folders(source, input_dir, dataset_dir)
    size_nm = _checked_voxel_size(voxel_size_nm)
    pairs: dict[str, _Pair] = {}
    for entry in _read_pairs(root / PAIRS_NAME):
        name = _pair_name(entry["image"], root)
        if name in pairs:
            raise UserError(
                f"{root / PAIRS_NAME}: two images would have one name. Received: {name} for {entry['image']}. "
                "Expected: other names, or each image once"
            )
        image, label = (open_chunked_volume(root / entry[key], cache_bytes=0) for key in ("image", "label"))
        pairs[name] = _checked_pair(name, entry["split"], image, label, image.voxel_size_nm or size_nm)
    return _write_dataset(source, list(pairs.values()), output, Counter(), f"{PAIRS_NAME} of the user")


def _mitoem_pairs(
    specimen: str, root: Path, output: Path, parts: Sequence[Part], skipped: Counter[str]
) -> Iterator[_Pair]:
    located = [[(files, _locate(specimen, files, root, output)) for files in _files_of(part)] for part in parts]
    if not any(place for places in located for _, place in places):
        skipped[f"{specimen} volume not found"] += 1
        return
    for part, places in zip(parts, located, strict=True):
        missing = [f"{files.folder}/" for files, place in places if place is None]
        if missing:
            skipped[f"{specimen} {part.name} without {' and '.join(missing)}"] += 1
            continue
        name = f"{specimen}_{part.name}"
        image, *label = (
            _open_sections(place, files, part, output / _UNPACKED / f"{name}_{files.folder}")
            for files, place in places
            if place is not None
        )
        yield _checked_pair(name, part.name, image, label[0] if label else None, MITOEM_VOXEL_SIZE_NM)


def _files_of(part: Part) -> list[_Files]:
    return [_IMAGES] + ([_Files(part.label_folder, _LABEL_FILE, _LABEL_ARCHIVE)] if part.label_folder else [])


def _locate(specimen: str, files: _Files, root: Path, output: Path) -> Path | None:
    """The folder or the archive that holds sections of a volume of MitoEM."""
    folders = [
        folder
        for above in ("", "*/", "*/*/")
        for folder in sorted(root.glob(f"{above}{files.folder}"))
        if folder.is_dir() and not folder.is_relative_to(output / _UNPACKED)
    ]
    folders = [folder for folder in folders if _specimen(folder, root) == specimen]
    if len(folders) > 1:
        raise UserError(
            f"{folders[1]}: there twice. Received: {folders[0]} too. Expected: one folder {files.folder}/ of the "
            f"{specimen} volume; take the other away"
        )
    archive = root / files.archive.format(_LETTERS[specimen])
    return folders[0] if folders else archive if archive.is_file() else None


def _specimen(folder: Path, root: Path) -> str:
    """``rat`` or ``human``, from the names of the folders above, or of the download itself."""
    for name in (str(folder.relative_to(root)), root.name):
        specimens = [specimen for specimen, pattern in _SPECIMENS.items() if pattern.search(name)]
        if len(specimens) == 1:
            return specimens[0]
    raise UserError(
        f"{folder}: rat or human? Received: a path that does not say which. Expected: it under a folder MitoEM-R, "
        "EM30-R or rat, or MitoEM-H, EM30-H or human"
    )


def _open_sections(place: Path, files: _Files, part: Part, unpacked: Path) -> ChunkedVolume:
    """The sections of a part by their numbers: others may lie beside them, and one that is missing is named."""
    folder = place
    if not place.is_dir():
        folder = unpacked
        if not folder.is_dir():
            names = "|".join(files.file.replace("{:04d}", numbers) for numbers in _number_patterns(part.numbers))
            unpack(place, folder, re.compile(rf"(?:[^/]+/)*{files.folder}/(?P<path>{names})"), _MAX_FILE_BYTES)
    return SectionVolume(folder, [[folder / files.file.format(number)] for number in part.numbers], cache_bytes=0)


def _number_patterns(numbers: range) -> Iterator[str]:
    """Regular expressions of numbers of four digits, one for each hundred."""
    for hundred in range(numbers[0] // 100, numbers[-1] // 100 + 1):
        last_digits = [f"{number % 100:02d}" for number in numbers if number // 100 == hundred]
        yield f"{hundred:02d}" + (r"\d\d" if len(last_digits) == 100 else f"(?:{'|'.join(last_digits)})")


def _checked_voxel_size(voxel_size_nm: Sequence[float] | None) -> VoxelSize | None:
    if voxel_size_nm is None:
        return None
    try:
        z_nm, y_nm, x_nm = (float(edge) for edge in voxel_size_nm)
    except (TypeError, ValueError):
        z_nm = y_nm = x_nm = math.nan
    if not all(math.isfinite(edge) and edge > 0 for edge in (z_nm, y_nm, x_nm)):
        raise UserError(
            f'voxel_size_nm: not a voxel size. Received: {voxel_size_nm}. Expected: --voxel_size_nm "[30,8,8]", z, y, x'
        )
    return z_nm, y_nm, x_nm


def _read_pairs(path: Path) -> list[dict[str, str]]:
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise unreadable(path, error) from error
    except ValueError as error:  # no JSON, no UTF-8
        raise UserError(f"{path}: no JSON. Received: {error}. Expected: {_PAIRS}") from error
    if not isinstance(entries, list) or not entries:
        raise UserError(f"{path}: no list of pairs. Received: {json.dumps(entries)[:80]}. Expected: {_PAIRS}")
    for number, entry in enumerate(entries):
        texts = [entry.get(key) for key in ("image", "label", "split")] if isinstance(entry, dict) else [None]
        if not all(isinstance(text, str) and text for text in texts) or texts[2] not in SPLITS:
            raise UserError(
                f"{path}: entry {number} is no pair. Received: {json.dumps(entry)[:200]}. "
                f"Expected: {_PAIRS}; a split is {', '.join(SPLITS[:-1])} or {SPLITS[-1]}"
            )
    return entries


def _pair_name(image: str, root: Path) -> str:
    """A file name from the path of an image: from ``root``, or its last two parts."""
    path = Path(image)
    path = path.relative_to(root) if path.is_relative_to(root) else path
    parts = path.parts if not path.is_absolute() else path.parts[-2:]
    return re.sub(r"[^A-Za-z0-9-]+", "_", _SUFFIXES.sub("", "/".join(parts))).strip("_") or "volume"


def _checked_pair(
    name: str, split: str, image: ChunkedVolume, label: ChunkedVolume | None, voxel_size_nm: VoxelSize | None
) -> _Pair:
    """A pair of one shape, of types that can be converted, and with a voxel size."""
    if label is not None:
        check_one_shape({str(image.path): image.shape, str(label.path): label.shape})
        if label.dtype.kind not in "bui":
            raise UserError(
                f"{label.path}: instance ids are whole numbers. Received: {label.dtype}. Expected: a label volume of "
                "an integer type"
            )
    if image.dtype.kind not in "uif" or (image.dtype.kind != "f" and image.dtype.itemsize > 2):
        raise UserError(
            f"{image.path}: no grey values. Received: {image.dtype}, which colours are read as too. Expected: an image "
            "of 8 or 16 bits, or of floating point"
        )
    if voxel_size_nm is None:
        raise UserError(
            f"{image.path}: no voxel size. Received: a file that does not say it. Expected: --voxel_size_nm "
            '"[30,8,8]", z, y, x'
        )
    return _Pair(name, split, image, label, voxel_size_nm)


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


def _write_dataset(
    source: Source, pairs: Sequence[_Pair], output: Path, skipped: Mapping[str, int], split_rule: str
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
    unpacked = output / _UNPACKED
    print(
        f"{path}: volumes {len(volumes)} ({counts}; split: {split_rule}){describe_skipped(skipped, '; ')}; "
        f"licence: {source.licence}; cite: {source.citation}"
        f"{f'; {unpacked} is no longer needed' if unpacked.is_dir() else ''}"
    )
    return path


def _summary(pair: _Pair, facts: Mapping[str, Any], is_kept: bool) -> str:
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


def _stores(pair: _Pair, output: Path) -> list[_Store]:
    """The image, then its label if there is one."""
    path = output / f"{pair.name}.ome.zarr"
    if path.resolve() in (pair.image.file_path.resolve(), *pair.image.file_path.resolve().parents):
        raise UserError(
            f"{path}: would replace the image that it is made from. Received: dataset_dir {output}. "
            "Expected: another --dataset_dir"
        )
    size = pair.voxel_size_nm
    stores = [_Store(path, pair.image, size, _write_image, _made_from(pair.image, size))]
    if pair.label:
        label_path = path / "labels" / LABEL_NAME
        stores.append(_Store(label_path, pair.label, size, _write_label, _made_from(pair.label, size)))
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
        f"{store.path}: would be overwritten. Received: a volume that was not made from {store.source.path} as it is "
        "now. Expected: another --dataset_dir, or remove that folder"
    )


def _write_image(store: _Store, bar: tqdm[Any]) -> dict[str, Any]:
    """Write an image as 8-bit OME-Zarr."""
    image = store.source
    grey_values = None if image.dtype == np.uint8 else _grey_values(image)
    convert = _unchanged if grey_values is None else partial(_to_bytes, grey_values=grey_values)
    facts = {"grey_values": grey_values}
    with create_ome_zarr(store.path, image.shape, np.uint8, store.voxel_size_nm) as voxels:
        _convert(image, voxels, convert, bar)
        voxels.attrs[_PREPARED] = {"made_from": store.made_from, "facts": facts}
    return facts


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
        facts = {"instances": len(ids), "foreground_fraction": n_foreground / math.prod(label.shape)}
        voxels.attrs[_PREPARED] = {"made_from": store.made_from, "facts": facts}
    return facts


def _largest_id(label: ChunkedVolume) -> int:
    """The largest id of a volume, which is read for it; its type may be far larger than that."""
    largest = max(int(sections.max()) for _, sections in _pieces(label, 0, label.shape[0]))
    if largest > _MAX_ID:
        raise _wrong_ids(label, largest)
    return largest


def _wrong_ids(label: ChunkedVolume, found: int) -> UserError:
    return UserError(
        f"{label.path}: instance ids are from 0 to {_MAX_ID}. Received: {found}. Expected: ids that are numbered anew"
    )


def _grey_values(image: ChunkedVolume) -> list[float]:
    """The percentiles of a sample of sections of the whole image."""
    depth, height, width = image.shape
    sampled = np.unique(np.linspace(0, depth - 1, _SAMPLED_SECTIONS).round().astype(int)).tolist()
    stride = math.ceil(math.sqrt(len(sampled) * height * width / _SAMPLED_PIXELS))
    sample = np.concatenate([image[z : z + 1][:, ::stride, ::stride].ravel() for z in sampled]).astype(np.float32)
    sample = sample[np.isfinite(sample)]
    return np.percentile(sample, PERCENTILES).tolist() if sample.size else [0.0, 1.0]


def _unchanged(section: NDArray[Any]) -> NDArray[Any]:
    return section


def _to_bytes(section: NDArray[Any], grey_values: Sequence[float]) -> NDArray[np.uint8]:
    """Grey values brought to 0 to 255; what is not finite counts as the lowest."""
    low, high = grey_values
    scaled = (section.astype(np.float32) - low) * (255 / max(high - low, 1e-6))
    scaled[~np.isfinite(scaled)] = 0
    return scaled.clip(0, 255).round().astype(np.uint8)


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
