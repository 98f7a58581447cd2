# SPDX-License-Identifier: Apache-2.0
"""MitoEM as distributed, or pairs of one's own, become a dataset folder of OME-Zarr volumes with ``dataset.json``.

Each image is written as 8-bit OME-Zarr and its instance ids as a label inside of it, some sections at a time, so that
training reads crops of volumes that are larger than memory. Volumes land whole or not at all and ``dataset.json`` comes
last: a run that was killed is started again and keeps the volumes that are finished. See :mod:`volseg.data.prepare`
for what holds for every data set.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from resunet_mitoem.dataset_writer import Pair, checked_pair, write_dataset
from resunet_mitoem.mitoem_layout import PARTS, SPECIMENS, Part, mitoem_pairs
from volseg.data.datalist import SPLITS
from volseg.data.image_file import unreadable
from volseg.data.open_volume import open_chunked_volume
from volseg.data.prepare import Source, check_arguments, check_folders, describe_skipped
from volseg.data.volume_formats.voxel_size import checked_voxel_size, chosen_voxel_size
from volseg.errors import UserError

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
_SUFFIXES = re.compile(r"\.(?:ome\.zarr|zarr|mrc|rec|map|nii\.gz|nii|h5|hdf5?|tiff?|json|png)(?=$|:)", re.IGNORECASE)


def prepare_data(
    source: str | None,
    input_dir: str | Path | None,
    dataset_dir: str | Path | None,
    voxel_size_nm: Sequence[float] | None = None,
    with_test: bool = False,
    label_components: bool = False,
) -> Path:
    """Turn volumes into a dataset folder; this is what ``configs/prepare_data.json`` calls.

    Args:
        source: ``mitoem`` or ``volumes``.
        input_dir: of ``mitoem`` the download, archives or unpacked; of ``volumes`` the folder with ``pairs.json``.
        dataset_dir: where the dataset folder is written.
        voxel_size_nm: of ``volumes``: (z, y, x), in place of what files say.
        with_test: of ``mitoem``: write the images of sections 500 to 999 too, whose labels are not published.
        label_components: of ``volumes``: labels are masks, whose connected components become the instances.

    Returns:
        Path of ``dataset.json``.

    Raises:
        UserError: an argument is missing or wrong, or a file is not what it should be.
    """
    check_arguments(SOURCES, source, input_dir, dataset_dir)
    if source == "mitoem":
        return prepare_mitoem(str(input_dir), str(dataset_dir), with_test=with_test)
    return prepare_volumes(str(input_dir), str(dataset_dir), voxel_size_nm, label_components)


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
    pairs: list[Pair] = []
    for specimen in SPECIMENS:
        pairs += mitoem_pairs(specimen, root, output, [p for p in parts if p.label_folder or with_test], skipped)
    if not any(pair.label for pair in pairs):
        raise UserError(
            f"input_dir: no images with labels in {root}{describe_skipped(skipped, ', ')}; expected {source.layout}"
        )
    if not with_test:
        skipped["test part, which has no published labels (--with_test True writes its images)"] += 1
    numbers = ", ".join(f"{p.name} sections {p.first} to {p.numbers[-1]}" for p in parts if p.label_folder)
    return write_dataset(source, pairs, output, skipped, f"official: {numbers}")


def prepare_volumes(
    input_dir: str | Path,
    dataset_dir: str | Path,
    voxel_size_nm: Sequence[float] | None = None,
    label_components: bool = False,
) -> Path:
    """Pairs of one's own, in any format of :func:`volseg.data.open_volume.open_chunked_volume`.

    ``pairs.json`` in ``input_dir`` lists them: ``[{"image": path, "label": path, "split": "training"}, ...]``, paths
    from that folder or absolute. Without a ``test`` entry, the validation volumes are ``test`` as well. See
    :func:`prepare_data`.
    """
    source = SOURCES["volumes"]
    root, output = check_folders(source, input_dir, dataset_dir)
    size_nm = checked_voxel_size(voxel_size_nm)
    pairs: dict[str, Pair] = {}
    for entry in _read_pairs(root / PAIRS_NAME):
        name = _pair_name(entry["image"], root)
        if name in pairs:
            raise UserError(
                f"{root / PAIRS_NAME}: two images would both be named {name}, the second is {entry['image']}; rename "
                "it, or list each image once"
            )
        image, label = (open_chunked_volume(root / entry[key], cache_bytes=0) for key in ("image", "label"))
        chosen = chosen_voxel_size(image.path, image.voxel_size_nm, size_nm)
        pairs[name] = checked_pair(name, entry["split"], image, label, chosen, label_components)
    return write_dataset(source, list(pairs.values()), output, Counter(), f"{PAIRS_NAME} of the user")


def _read_pairs(path: Path) -> list[dict[str, str]]:
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file; write one there: {_PAIRS}") from error
    except OSError as error:
        raise unreadable(path, error) from error
    except (ValueError, RecursionError) as error:  # no JSON, no UTF-8
        raise UserError(f"{path}: not JSON ({error}); expected {_PAIRS}") from error
    if not isinstance(entries, list) or not entries:
        raise UserError(f"{path}: must be a list {_PAIRS}, got {json.dumps(entries)[:80]}")
    for number, entry in enumerate(entries):
        texts = [entry.get(key) for key in ("image", "label", "split")] if isinstance(entry, dict) else [None]
        if not all(isinstance(text, str) and text for text in texts) or texts[2] not in SPLITS:
            raise UserError(
                f"{path}: entry {number} is not a pair, got {json.dumps(entry)[:200]}; expected {_PAIRS}, where a "
                f"split is {', '.join(SPLITS[:-1])} or {SPLITS[-1]}"
            )
    return entries


def _pair_name(image: str, root: Path) -> str:
    """A file name from the path of an image: from ``root``, or its last two parts."""
    path = Path(image)
    path = path.relative_to(root) if path.is_relative_to(root) else path
    parts = path.parts if not path.is_absolute() else path.parts[-2:]
    return re.sub(r"[^A-Za-z0-9-]+", "_", _SUFFIXES.sub("", "/".join(parts))).strip("_") or "volume"
