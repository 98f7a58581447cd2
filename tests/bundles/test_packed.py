# SPDX-License-Identifier: Apache-2.0
"""A packed bundle is alone: in an environment of its own packages, every command of its card and pages works.

The environment is a virtual one whose packages are links to those of the interpreter that runs the tests: what the
card's ``pip install`` lines name, and what that requires, and nothing else.
"""

from __future__ import annotations

import csv
import json
import os
import re
import shlex
import subprocess
import venv
import zipfile
from collections.abc import Callable, Iterable
from functools import cache
from importlib.metadata import Distribution, distribution, distributions
from pathlib import Path
from typing import Any

import itk
import nibabel as nib
import numpy as np
import pytest
import tifffile
import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from PIL import Image

from tools.check.files import bundle_files
from tools.pack import CARD, card_pages, pack
from tools.sbom import SBOM
from volseg.registry.manifest import MANIFEST, Manifest

NAMES = ("pdvnet_lung", "vnet_prostate", "resunet_mitoem")
FENCE = re.compile(r"^```[a-z]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)#\s]+)[^)]*\)")
INSTALL = "pip install "
COMMANDS = (INSTALL, "python -m ", "torchrun ")
PLACEHOLDER = re.compile("[A-Z]+")
BLOCKWISE_RESULTS = {
    "instances.ome.zarr",
    "instances.csv",
    "instances.parquet",
    "statistics.json",
    "preview.png",
    "finished",
}
SHAPE = (9, 8, 6)  # x, y, z of volumes of downloads


def fenced_lines(card: str, *beginnings: str) -> list[str]:
    """Lines of a text's code blocks that begin so."""
    return [line for block in FENCE.findall(card) for line in block.splitlines() if line.startswith(beginnings)]


def files_of(dist: Distribution) -> list[str]:
    """Paths of what a distribution installed, relative to the folder of packages, as pip recorded them."""
    record = dist.read_text("RECORD") or ""
    return [row[0] for row in csv.reader(record.splitlines()) if row]


@cache
def owners() -> dict[str, set[str]]:
    """Names of the installed distributions by the top-level files and folders that they have a part in."""
    found: dict[str, set[str]] = {}
    for dist in distributions():
        for top in {path.partition("/")[0] for path in files_of(dist)}:
            found.setdefault(top, set()).add(canonicalize_name(dist.name))
    return found


def closure(requirements: Iterable[str]) -> dict[str, Distribution]:
    """Installed distributions by name: those required and, without their extras, those that they require."""
    found: dict[str, Distribution] = {}
    seen, waiting = set(), [Requirement(text) for text in requirements]
    while waiting:
        requirement = waiting.pop()
        name, extras = canonicalize_name(requirement.name), frozenset(requirement.extras)
        dist = found.setdefault(name, distribution(name))
        assert requirement.specifier.contains(dist.version, prereleases=True), f"{requirement}: {dist.version} is here"
        if (name, extras) not in seen:
            seen.add((name, extras))
            further = [Requirement(text) for text in dist.requires or ()]
            waiting += [
                r for r in further if not r.marker or any(r.marker.evaluate({"extra": e}) for e in (*extras, ""))
            ]
    return found


class Environment:
    """A virtual environment of linked packages."""

    def __init__(self, folder: Path) -> None:
        venv.create(folder, with_pip=False, symlinks=True)
        self.python = folder / "bin" / "python"
        (self.site,) = folder.glob("lib/python*/site-packages")

    def install(self, requirements: Iterable[str]) -> None:
        """What ``pip install`` does: packages and their scripts."""
        for name, dist in closure(requirements).items():
            paths = files_of(dist)
            assert paths, f"{name}: was not installed by pip"
            tops = {path.partition("/")[0] for path in paths}
            # a folder that several distributions share, such as a namespace package, is made up of files
            shared = {top for top in tops if owners()[top] != {name}}
            parts = (tops - shared) | {path for path in paths if path.partition("/")[0] in shared}
            for part in parts:
                if not {"..", "__pycache__"} & set(part.split("/")) and not (self.site / part).exists():
                    (self.site / part).parent.mkdir(parents=True, exist_ok=True)
                    (self.site / part).symlink_to(str(dist.locate_file(part)))
            for script in dist.entry_points.select(group="console_scripts"):
                path = self.python.with_name(script.name)
                call = f"from {script.module} import {script.attr}\nsys.exit({script.attr}())"
                path.write_text(f"#!{self.python}\nimport sys\n{call}\n")
                path.chmod(0o755)


class Unpacked:
    """A bundle that was packed and unpacked, with an environment in which nothing is installed yet.

    V-Net is packed with small weights.

    Attributes:
        folder: in which the zip was unpacked.
        root: of the bundle, where commands are typed.
        card: its text.
        texts: of the card and of the pages that it links to, by their paths.
    """

    def __init__(self, bundle: Any, folder: Path) -> None:
        pack(bundle.name, str(folder), model=str(bundle.weights) if bundle.name == "vnet_prostate" else "")
        (path,) = folder.glob("*.zip")
        self.folder = folder / "unrelated"
        with zipfile.ZipFile(path) as archive:
            assert {name.partition("/")[0] for name in archive.namelist()} == {bundle.name}
            archive.extractall(self.folder)
        self.root = self.folder / bundle.name
        self.files = {path.relative_to(self.root).as_posix() for path in self.root.rglob("*") if path.is_file()}
        paths = (CARD, *card_pages(bundle.name))
        self.texts = {path: (self.root / path).read_text(encoding="utf-8") for path in paths}
        self.card = self.texts[CARD]
        self.environment = Environment(folder / "environment")


@pytest.fixture(scope="session")
def unpacked_bundle(bundle_case, tmp_path_factory):
    """``unpacked_bundle(name)`` is the :class:`Unpacked` bundle of that name."""
    return cache(lambda name: Unpacked(bundle_case(name), tmp_path_factory.mktemp("packed")))


@pytest.fixture(scope="module", params=NAMES)
def bundle_name(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def unpacked(unpacked_bundle, bundle_name) -> Unpacked:
    return unpacked_bundle(bundle_name)


def test_bundle_and_volseg_are_the_repositorys_byte_for_byte(root, bundle, unpacked):
    sources = {path: bundle.dir / path for path in bundle_files(bundle.dir)}
    sources |= {f"volseg/{path}": root / "volseg" / path for path in bundle_files(root / "volseg")}
    replaced = {CARD, "models/model.pt", "models/model.json"} if bundle.name == "vnet_prostate" else {CARD}
    assert unpacked.files == {*sources, *replaced, *unpacked.texts, MANIFEST, SBOM}
    compared = sources.keys() - replaced
    assert [path for path in compared if (unpacked.root / path).read_bytes() != sources[path].read_bytes()] == []


def test_texts_hold_where_they_were_unpacked(unpacked):
    assert "bundles/" not in unpacked.card
    for text in unpacked.texts.values():
        assert f"bundles/{unpacked.root.name}/" not in text
        links = [link for link in LINK.findall(text) if "://" not in link]
        assert [link for link in links if os.path.normpath(f"docs/{link}") not in unpacked.files] == []
    # what only the repository has is said to be there
    paragraphs = [text for text in re.split(r"\n\s*\n", unpacked.card) if "python -m tools" in text]
    assert [text for text in paragraphs if "repository" not in text] == []


def test_card_installs_what_the_manifest_requires(unpacked):
    first, *_ = fenced_lines(unpacked.card, INSTALL)
    required = Manifest.read(unpacked.root).required_packages
    assert sorted(first.removeprefix(INSTALL).split()) == sorted(f"{name}=={v}" for name, v in required.items())


# ------------------------------------------------------------------------------------------- inputs of the commands


def write_image(path: Path, voxels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    itk.imwrite(itk.image_from_array(np.ascontiguousarray(voxels.T)), str(path))


def write_nifti(path: Path, voxels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(voxels, np.eye(4)), path)


def labels(n_labels: int) -> np.ndarray:
    return np.resize(np.arange(n_labels + 1, dtype=np.uint8), SHAPE)


def luna16(download: Path) -> None:
    lobe_of_code = np.array([0, 4, 5, 6, 7, 8], np.uint16)
    for case in range(4):
        write_image(download / f"subset{case}" / f"1.2.{case}.mhd", labels(5).astype(np.int16) - 800)
        write_image(download / "annotations" / f"1.2.{case}_LobeSegmentation.nrrd", lobe_of_code[labels(5)])


def totalsegmentator(download: Path) -> None:
    masks = ("upper_lobe_left", "lower_lobe_left", "upper_lobe_right", "middle_lobe_right", "lower_lobe_right")
    splits = ("train", "val", "test")
    for case, _ in enumerate(splits):
        write_nifti(download / f"s000{case}" / "ct.nii.gz", np.full(SHAPE, -800, np.int16))
        for code, mask in enumerate(masks, 1):
            path = download / f"s000{case}" / "segmentations" / f"lung_{mask}.nii.gz"
            write_nifti(path, (labels(5) == code).astype(np.uint8))
    lines = ["image_id;split", *(f"s000{case};{split}" for case, split in enumerate(splits))]
    (download / "meta.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")


def promise12(download: Path) -> None:
    for part, numbers in (("training_data", range(10)), ("test_data", range(3))):
        for number in numbers:
            write_image(download / part / f"Case{number:02}.mhd", labels(1).astype(np.int16) * 100)
            write_image(download / part / f"Case{number:02}_segmentation.mhd", labels(1))


def msd_task05(download: Path) -> None:
    root = download / "Task05_Prostate"
    names = [f"prostate_{number:02}.nii.gz" for number in range(4)]
    for name in names:
        write_nifti(root / "imagesTr" / name, np.stack([labels(2).astype(np.float32)] * 2, axis=-1))
        write_nifti(root / "labelsTr" / name, labels(2))
    pairs = [{"image": f"./imagesTr/{name}", "label": f"./labelsTr/{name}"} for name in names]
    content = {"modality": {"0": "T2", "1": "ADC"}, "training": pairs, "test": []}
    (root / "dataset.json").write_text(json.dumps(content))


def mitoem(download: Path) -> None:
    """The sections of the rat's validation part, with the compression that sections in TIFF often have."""
    for folder in ("im", "mito-val-v2"):
        (download / "MitoEM-R" / folder).mkdir(parents=True)
    for number in range(400, 500):
        Image.fromarray(labels(2)[..., 0] * 100).save(download / "MitoEM-R" / "im" / f"im{number:04}.png")
        section = labels(2)[..., 0].astype(np.uint16)
        tifffile.imwrite(download / "MitoEM-R" / "mito-val-v2" / f"seg{number:04}.tif", section, compression="lzw")


def volumes(download: Path) -> None:
    download.mkdir()
    size_um = {"PhysicalSizeX": 0.008, "PhysicalSizeY": 0.008, "PhysicalSizeZ": 0.03}
    for name in ("a", "a_label"):
        path = download / f"{name}.ome.tif"
        tifffile.imwrite(path, labels(2), ome=True, compression="lzw", metadata={"axes": "ZYX", **size_um})
    pairs = [{"image": "a.ome.tif", "label": "a_label.ome.tif", "split": "training"}]
    (download / "pairs.json").write_text(json.dumps(pairs))


# ----------------------------------------------------------------------------------------------------- commands


def kind(command: str) -> str:
    """What a command does: ``train+evaluate`` for these configs, ``prepare_data luna16``, ``ckpt_export``."""
    function = command.partition("-m monai.bundle ")[2].split()[0]
    if function != "run":
        return function
    source = re.search(r"--source (\w+)", command)
    return "+".join(re.findall(r"(\w+)\.json", command)) + (f" {source[1]}" if source else "")


DOWNLOADS: dict[str, Callable[[Path], None]] = {
    f"prepare_data {function.__name__}": function
    for function in (luna16, totalsegmentator, promise12, msd_task05, mitoem, volumes)
}


@pytest.fixture(scope="module")
def overrides(bundle) -> dict[str, list[str]]:
    """What makes commands small, by their kind; a command of the card that is not here has never been tried."""
    network = bundle.network_overrides if bundle.name == "vnet_prostate" else []  # the others' weights are their own
    cases = "{'training': 2, 'validation': 2, 'test': 1}"
    phantoms = ["--phantom_cases", cases, "--phantom_shape", str(list(bundle.small.phantom_shape)), *network]
    short = ["--max_epochs", "1", "--val_interval", "1", "--num_workers", "0"]
    train = [*phantoms, *bundle.size_overrides, *short]
    exports = dict.fromkeys(("verify_net_in_out", "ckpt_export", "onnx_export"), network)
    common = {**exports, "inference": network, "train": train, "train+evaluate": phantoms}
    common["inference+inference_trt"] = network
    if bundle.name == "pdvnet_lung":
        size = ["--spatial_size", "[32, 48, 24]"]  # the 2D U-Net halves four times
        overlays = ("multi_gpu_train", "train_amp", "train_dense_vnet", "train_unet_2d")
        sources = ("luna16", "totalsegmentator")
        own = {f"train+{overlay}": [*train, *size] for overlay in overlays}
        painted = ["--label_maps", "", "--spatial_size", "[24, 16, 32]", "--paintings_per_epoch", "2"]
        own["train+train_painted"] = [*painted, *short]
    elif bundle.name == "vnet_prostate":
        overlays = ("multi_gpu_train", "train_amp", "train_practical", "train_logistic")
        sources = ("promise12", "msd_task05")
        own = {f"train+{overlay}": train for overlay in overlays}
        own["train+train_practical+finetune"] = [*phantoms, *short]
        own["train+train_practical+train_released"] = [*train, "--train#dataloader#sampler#num_samples", "2"]
    else:
        window = ["--window", "[8, 32, 48]"]
        sources = ("mitoem", "volumes")
        common["inference"] = common["inference+inference_trt"] = window
        common |= {name: [*common[name], *window] for name in ("train", "train+evaluate")}
        overlays = ("multi_gpu_train", "train_amp", "train_second_stage", "train_h", "train_h+train_second_stage")
        own = {f"train+{overlay}": common["train"] for overlay in overlays}
        own["inference+inference_h"] = window
        own["train+finetune"] = [*phantoms, *short]
        tiny = ["--epoch_iterations", "2", "--spatial_size", "[4, 32, 48]"]
        own |= {
            f"train+{overlay}": [*phantoms, *window, *short, *tiny]
            for overlay in ("train_varied", "train_h+train_varied")
        }
        own["inference_blockwise"] = [*window, "--workers", "0"]
        own["restore"] = []
        own["train_interpolation"] = [
            "--patch_size", "[32, 32]", "--batch_size", "2", "--epoch_iterations", "2", "--validation_patches", "3",
            *short,
        ]  # fmt: skip
        thresholds = [
            "--mask_thresholds",
            "[0.9]",
            "--boundary_thresholds",
            "[0.5]",
            "--foreground_thresholds",
            "[0.85]",
        ]
        own["train+tune"] = [*window, *thresholds]
    return common | own | {f"prepare_data {source}": [] for source in sources}


@pytest.fixture
def filled_in(bundle, tmp_path):
    """``filled_in(command)``: the words of a command, with paths of tiny files in place of its placeholders."""

    def fill_in(command: str) -> list[str]:
        case, download = bundle.phantom["image"], tmp_path / "download"
        paths = {**dict.fromkeys(("CT", "MRI", "VOLUME", "INPUT"), case), "OUT": tmp_path / "out"}
        paths["DATASET"] = bundle.phantom_dir
        if write := DOWNLOADS.get(kind(command)):
            write(download)
            paths |= {"DOWNLOAD": download, "FOLDER": download, "DATASET": tmp_path / "dataset"}
        words = [str(paths.get(word, word)) for word in shlex.split(command)]
        assert [word for word in words if PLACEHOLDER.fullmatch(word)] == []
        return words

    return fill_in


def _commands() -> list[tuple[str, str]]:
    """Name of the bundle and command, in the order of its card and pages, as they are in the repository.

    What is about other bundles is left out, and clusters, which ``tests/volseg/blockwise`` has.
    """
    root = Path(__file__).parents[2]
    found = []
    for name in NAMES:
        others = tuple(f"bundles/{other}/" for other in NAMES if other != name)
        pages = [page for page in card_pages(name) if page != "docs/terabyte.md"]
        texts = [(root / path).read_text(encoding="utf-8") for path in (f"bundles/{name}/{CARD}", *pages)]
        lines = fenced_lines("\n".join(texts).replace("bundles/NAME/", f"bundles/{name}/"), *COMMANDS)
        found += [(name, line) for line in dict.fromkeys(lines) if not any(other in line for other in others)]
    return found


def _id(value: str) -> str:
    return value if value in NAMES else value.split("=", maxsplit=1)[0] if value.startswith(INSTALL) else kind(value)


@pytest.fixture(scope="module")
def alone(start_runner, unpacked, tmp_path_factory):
    """Starts commands in the bundle's environment, after its first installation."""
    runner = start_runner(tmp_path_factory.mktemp("alone"), unpacked.environment.python)
    yield runner
    runner.close()


@pytest.mark.parametrize(("bundle_name", "command"), _commands(), ids=_id, indirect=["bundle_name"], scope="module")
def test_command_of_the_card(request, unpacked, overrides, filled_in, bundle, command, tmp_path):
    command = command.replace(f"bundles/{bundle.name}/", "")
    assert any(command in text for text in unpacked.texts.values())
    if command.startswith(INSTALL):
        unpacked.environment.install(command.removeprefix(INSTALL).split())
        return
    alone = request.getfixturevalue("alone")
    before = _files(unpacked.folder, tmp_path)
    words = [*filled_in(command), *overrides[kind(command)]]
    no_gpu = {"CUDA_VISIBLE_DEVICES": ""}
    if command.startswith("torchrun"):
        words[0] = str(unpacked.environment.python.with_name("torchrun"))
        process = subprocess.run(
            words, cwd=unpacked.root, env=alone.environment | no_gpu, capture_output=True, text=True, check=False
        )
    else:
        assert words[:3] == ["python", "-m", "monai.bundle"]
        process = alone.bundle(*words[3:], cwd=unpacked.root, env=no_gpu)
    assert process.returncode == 0, f"{shlex.join(words)}\n{process.stdout}\n{process.stderr}"
    assert "Traceback" not in process.stderr, process.stderr
    if kind(command) == "verify_net_in_out":
        assert "verified with no error" in process.stdout
    else:
        written = {path for path, _ in _files(unpacked.folder, tmp_path) - before}
        assert written
    if command.startswith("torchrun"):
        weights, completed = (unpacked.root / "output/train" / f"{n}.pt" for n in ("model", "checkpoint_completed"))
        assert {weights, completed} <= written
        names = torch.load(weights, weights_only=True).keys()
        assert names == bundle.untrained().state_dict().keys()  # without DistributedDataParallel's prefix
        assert torch.load(completed, weights_only=True)["epoch"] == 1
    if kind(command).startswith("inference"):
        folder, results = tmp_path / "out", bundle.results()
        if kind(command) == "inference_blockwise":
            folder, results = folder / "test_0", BLOCKWISE_RESULTS
        assert {path.name for path in folder.iterdir()} == results


FIND = """
import importlib.util, json, sys
print(json.dumps([name for name in sys.argv[1:] if importlib.util.find_spec(name)]))
"""


def test_nothing_else_can_be_imported(unpacked):
    needed = ["monai", "torch", "numpy", "ignite", "nibabel", "itk", "scipy", "matplotlib", "tqdm", "fire"]
    others = ["volseg", "tools", "pytest", "requests", "openvino", "mlflow", "SimpleITK"]
    (others if unpacked.root.name == "resunet_mitoem" else needed).append("pydicom")  # for scans alone
    unpacked.environment.install(fenced_lines(unpacked.card, INSTALL)[0].removeprefix(INSTALL).split())
    process = subprocess.run(
        [unpacked.environment.python, "-c", FIND, *needed, *others],
        cwd=unpacked.folder, env={}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert json.loads(process.stdout) == needed


def _files(*folders: Path) -> set[tuple[Path, int]]:
    return {(path, path.stat().st_mtime_ns) for folder in folders for path in folder.rglob("*") if path.is_file()}
