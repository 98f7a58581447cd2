# SPDX-License-Identifier: Apache-2.0
"""Runs the command line of ``monai.bundle`` many times without paying for its imports each time.

A warm process imports MONAI once and forks for every command: what runs in the fork has the arguments, working
directory, environment and module search path that ``python -m monai.bundle`` would have, and leaves the way the
interpreter leaves.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nibabel as nib
import numpy as np
import pytest

if TYPE_CHECKING:
    import torch

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT_S = 900  # only ends a hang

# Takes an editable installation out, as if the repository were not installed.
NOT_INSTALLED = f"""import sys
sys.meta_path[:] = [f for f in sys.meta_path if not getattr(f, "__module__", "").startswith("__editable__")]
sys.path[:] = [p for p in sys.path if not p.startswith({str(ROOT)!r}) or "site-packages" in p]
"""
WARM_IMPORTS = (
    "ignite.engine", "itk", "matplotlib.pyplot", "monai.bundle", "monai.data", "monai.engines", "monai.handlers",
    "monai.transforms", "nibabel", "scipy.ndimage", "torch.utils.tensorboard",
)  # fmt: skip


class Runner:
    """Starts commands in forks of one warm process.

    Args:
        folder: in which commands run unless they name another.
        python: interpreter.
        site: folder with a ``sitecustomize.py``, if it needs one.
        imports: modules that the process has imported when it forks.
    """

    def __init__(
        self,
        folder: Path,
        python: Path | str = sys.executable,
        site: Path | str = "",
        imports: Sequence[str] = WARM_IMPORTS,
    ) -> None:
        self.folder, self.executable = folder, str(python)
        folder.mkdir(parents=True, exist_ok=True)
        self.environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONSAFEPATH")}
        self.environment |= {
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(site),
            "PYTHONDONTWRITEBYTECODE": "1",
            "MPLBACKEND": "agg",
            "XDG_CACHE_HOME": str(folder / "cache"),
        }
        self.server = subprocess.Popen(
            [self.executable, str(Path(__file__).with_name("warm_process.py")), *imports],
            cwd=folder,
            env=self.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def bundle(
        self,
        *args: object,
        cwd: Path | None = None,
        env: dict[str, str] | None = None,
        killed_by: Path | None = None,
    ) -> Any:
        """``python -m monai.bundle ARGS``, killed as soon as the file ``killed_by`` is there."""
        return self._run(["monai.bundle", *(str(a) for a in args)], "module", cwd, env, killed_by)

    def python(self, code: str, *args: object, cwd: Path | None = None, env: dict[str, str] | None = None) -> Any:
        """``python -c CODE ARGS``"""
        script = self.folder / "script.py"
        script.write_text(code)
        return self._run([str(script), *(str(a) for a in args)], "path", cwd, env)

    def process(self, *args: object, cwd: Path | None = None, env: dict[str, str] | None = None) -> Any:
        """``python ARGS``, a process of its own."""
        return subprocess.run(
            [self.executable, *(str(a) for a in args)],
            cwd=cwd or self.folder,
            env=self.environment | (env or {}),
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )

    def _run(
        self,
        argv: Sequence[str],
        kind: str,
        cwd: Path | None,
        env: dict[str, str] | None,
        killed_by: Path | None = None,
    ) -> subprocess.CompletedProcess[str]:
        out, err = self.folder / "stdout.txt", self.folder / "stderr.txt"
        request = {"argv": argv, "kind": kind, "cwd": str(cwd or self.folder), "env": env or {}}
        assert self.server.stdin is not None
        assert self.server.stdout is not None
        self.server.stdin.write(json.dumps(request | {"out": str(out), "err": str(err)}) + "\n")
        self.server.stdin.flush()
        child = int(self.server.stdout.readline())
        if killed_by:
            with suppress(ProcessLookupError):  # it has ended
                while not killed_by.is_file():
                    os.kill(child, 0)
                    time.sleep(0.002)
                os.kill(child, signal.SIGKILL)
        status = int(self.server.stdout.readline())
        return subprocess.CompletedProcess(argv, status, out.read_text(), err.read_text())

    def close(self) -> None:
        assert self.server.stdin is not None
        self.server.stdin.close()
        self.server.wait(TIMEOUT_S)


@dataclass(frozen=True)
class Small:
    """How a bundle is made small enough for tests: what its networks, grids and phantoms are then.

    Attributes:
        network: its class.
        segmentation: what follows a case's name in the file that inference writes.
        phantom_shape: voxels along the stored axes.
        record: what the JSON file beside weights says; its lists are overrides of train.json, too.
        arguments: of the network.
        training: further overrides of train.json.
        metric: that validation goes by.
        also_written: further files of a case beside segmentation and preview, as ``segmentation``.
    """

    network: str
    segmentation: str
    phantom_shape: tuple[int, int, int]
    record: dict[str, Any]
    arguments: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    metric: str = "val_mean_dice"
    also_written: tuple[str, ...] = ()


EM_DECODING = {
    "voxel_size_nm": [30, 32, 32],
    "boundary_half_width": 2,
    "decoding": "connected_components",
    "mask_threshold": 0.9,
    "boundary_threshold": 0.8,
    "foreground_threshold": 0.85,
    "outline_threshold": 0.0,
    "min_size": 128,
    "dilation": [1, 7, 7],
}

SMALL = {
    "pdvnet_lung": Small(
        network="pdvnet_lung.network.PDVNet",
        segmentation="_lobes.nii.gz",
        phantom_shape=(40, 48, 32),
        record={"spatial_size": [32, 40, 24], "crop_to_lungs": False},
    ),
    "vnet_prostate": Small(
        network="vnet_prostate.network.VNet",
        segmentation="_prostate.nii.gz",
        phantom_shape=(48, 40, 16),
        record={
            "spatial_size": [32, 48, 16],
            "spacing_mm": [4.0, 3.0, 6.0],
            "channels": [2, 4, 4, 8, 8],
            "norm": None,
            "bias_correction": False,
            "local_contrast_mm": None,
            "mirror": False,
            "mask_threshold": 0.5,
        },
        arguments={"channels": [2, 4, 4, 8, 8]},
    ),
    "resunet_mitoem": Small(
        network="resunet_mitoem.network.ResUNetR",
        segmentation="_instances.ome.zarr",
        phantom_shape=(12, 48, 64),
        record={"spatial_size": [8, 32, 48], **EM_DECODING},
        arguments={"channels": [4, 4, 4, 4, 4]},
        training={"epoch_iterations": 2, "margin_pixels": 8},
        metric="val_ap75",
        also_written=("_instances.csv",),
    ),
}


class BundleCase:
    """A bundle with tiny phantoms and weights of an untrained network, made once for all tests."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.small = name, SMALL[name]
        self.dir = ROOT / "bundles" / name
        self.configs = self.dir / "configs"
        self.spatial_size: list[int] = self.small.record["spatial_size"]
        self.network_overrides = [v for k, a in self.small.arguments.items() for v in (f"--network_def#{k}", str(a))]
        self.folder = folder
        self.phantom_dir = folder / "phantoms"
        cases = {"training": 2, "validation": 2, "test": 1}
        import_module(f"{name}.data").datalist(None, "training", str(self.phantom_dir), cases, self.small.phantom_shape)
        (self.pair,) = json.loads((self.phantom_dir / "dataset.json").read_text())["test"]
        self.phantom = {kind: self.phantom_dir / path for kind, path in self.pair.items()}
        self.phantom_overrides = [
            "--phantom_dir", str(self.phantom_dir), "--phantom_cases", str(cases),
            "--phantom_shape", str(list(self.small.phantom_shape)), "--device", "cpu", *self.network_overrides,
        ]  # fmt: skip
        sizes = {k: a for k, a in self.small.record.items() if isinstance(a, list)} | self.small.training
        self.size_overrides = [v for k, a in sizes.items() for v in (f"--{k}", str(a))]
        self.train_overrides = [*self.phantom_overrides, *self.size_overrides, "--max_epochs", "1"]
        self.weights = folder / "weights" / "model.pt"
        from volseg.weights import save_weights

        save_weights(self.weights, self.untrained(), self.small.record)

    def untrained(self) -> torch.nn.Module:
        """The small network, always with the same weights."""
        import torch

        module, _, name = self.small.network.rpartition(".")
        norm = {"norm": self.small.record["norm"]} if "norm" in self.small.record else {}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return getattr(import_module(module), name)(**self.small.arguments, **norm)

    def segmentation(self, case: str = "test_0") -> str:
        """Name of the file in which inference writes the segmentation of a case."""
        return case + self.small.segmentation

    def results(self, case: str = "test_0") -> set[str]:
        """Names of all that inference writes for one case."""
        suffixes = (self.small.segmentation, "_preview.png", *self.small.also_written)
        return {case + suffix for suffix in suffixes} | {"statistics.json"}

    def network(self) -> torch.nn.Module:
        """The small network in evaluation, with the weights of :attr:`weights`."""
        from volseg.weights import load_weights

        network = self.untrained()
        load_weights(self.weights, network)
        return network.eval()


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return ROOT


@pytest.fixture(scope="session")
def bundle_case(tmp_path_factory):
    """``bundle_case(name)`` is the :class:`BundleCase` of a bundle."""
    return cache(lambda name: BundleCase(name, tmp_path_factory.mktemp(name)))


@pytest.fixture(scope="module")
def bundle(bundle_case, bundle_name) -> BundleCase:
    """The bundle that a module tests; ``bundle_name`` is a fixture beside its tests."""
    return bundle_case(bundle_name)


@pytest.fixture(scope="module")
def configs(bundle) -> Path:
    return bundle.configs


@pytest.fixture(scope="module")
def phantom(bundle) -> dict[str, Path]:
    """One tiny case: image and label."""
    return bundle.phantom


@pytest.fixture(scope="module")
def phantom_overrides(bundle) -> list[str]:
    """Arguments that make evaluate.json small."""
    return bundle.phantom_overrides


@pytest.fixture(scope="module")
def train_overrides(bundle) -> list[str]:
    """Arguments that make train.json small."""
    return bundle.train_overrides


@pytest.fixture(scope="module")
def weights(bundle) -> Path:
    """Weights of an untrained network, with the grid they belong to beside them."""
    return bundle.weights


@pytest.fixture(scope="session")
def start_runner():
    """``start_runner(folder, ...)`` is a :class:`Runner` of its own; close it."""
    return Runner


@pytest.fixture(scope="session")
def runner(start_runner, tmp_path_factory):
    """Runs commands as the repository's installation does."""
    imports = (*WARM_IMPORTS, "distributed", "pyarrow.parquet", "skimage.segmentation", "tifffile", "zarr")
    runner = start_runner(tmp_path_factory.mktemp("runner") / "unrelated", imports=imports)
    yield runner
    runner.close()


@pytest.fixture(scope="session")
def bare_runner(start_runner, tmp_path_factory):
    """Runs commands as if the repository were not installed; ``PYTHONPATH`` can install a copy of it."""
    folder = tmp_path_factory.mktemp("bare_runner")
    (folder / "sitecustomize.py").write_text(NOT_INSTALLED)
    imports = (*WARM_IMPORTS, "onnxscript", "tifffile", "torch._dynamo", "zarr")
    runner = start_runner(folder / "unrelated", site=folder, imports=imports)
    yield runner
    runner.close()


@pytest.fixture(scope="session")
def monai_bundle(runner):
    """``monai_bundle(*args, cwd=None, env=None)`` returns the completed process; by default in an unrelated folder."""
    return runner.bundle


@pytest.fixture
def infer(monai_bundle, bundle, tmp_path):
    """Run inference.json on a small grid; the folder of the results and what was said."""

    def run(source: Path | None, *overrides: object, model: Path = bundle.weights) -> tuple[Path, str]:
        given = [] if source is None else ["--input", source]
        process = monai_bundle(
            "run", "--config_file", bundle.configs / "inference.json", *given, "--weights", model,
            "--output_dir", tmp_path / "out", "--device", "cpu", *bundle.network_overrides, *overrides,
        )  # fmt: skip
        assert process.returncode == 0, process.stderr
        return tmp_path / "out", process.stderr

    return run


@pytest.fixture
def image(phantom):
    """The phantom's image: voxels (X, Y, Z) and affine."""
    file = nib.load(phantom["image"])
    return np.asarray(file.dataobj).copy(), file.affine


@pytest.fixture
def case(tmp_path, bundle, phantom):
    """A folder with one image and its label, to be spoilt, and the data list of a dataset."""
    folder = tmp_path / "dataset"
    folder.mkdir()
    pair = {"image": "image.nii.gz", "label": "label.nii.gz"}
    if phantom["image"].is_dir():  # the label is inside the image
        pair = bundle.pair
        shutil.copytree(phantom["image"], folder / pair["image"])
    else:
        for kind, path in phantom.items():
            shutil.copy(path, folder / pair[kind])
    (folder / "dataset.json").write_text(json.dumps({"training": [pair], "validation": [pair], "test": [pair]}))
    return folder


@pytest.fixture
def outputs(tmp_path):
    return ["--output_dir", tmp_path / "out", "--ckpt_dir", tmp_path / "models"]


@pytest.fixture
def train(monai_bundle, bundle, outputs):
    """Run train.json on a dataset folder for one small epoch; the completed process."""

    def run(dataset_dir: Path | str, *overrides: object):
        sizes = [*bundle.size_overrides, *bundle.network_overrides, "--max_epochs", 1, "--val_interval", 1]
        given = ["--dataset_dir", dataset_dir, *sizes, "--device", "cpu", "--num_workers", 0, *outputs, *overrides]
        return monai_bundle("run", "--config_file", bundle.configs / "train.json", *given)

    return run


@pytest.fixture
def try_to_infer(monai_bundle, bundle, tmp_path):
    """Run inference.json on one input; the completed process."""

    def run(source: Path | str, *overrides: object, model: Path = bundle.weights):
        given = ["--input", source, "--weights", model, "--output_dir", tmp_path / "out", "--device", "cpu"]
        small = bundle.network_overrides
        return monai_bundle("run", "--config_file", bundle.configs / "inference.json", *given, *small, *overrides)

    return run


@pytest.fixture(scope="module")
def segment(monai_bundle, bundle):
    """``segment(source, out, *options)`` runs inference on a small grid; the completed process."""

    def run(source: Path | str, out: Path, *options: object, cwd: Path | None = None):
        return monai_bundle(
            "run", "--config_file", bundle.configs / "inference.json", "--input", source, "--weights", bundle.weights,
            "--output_dir", out, "--device", "cpu", "--runtime", "eager", "--preview", "False",
            *bundle.network_overrides, *options, cwd=cwd,
        )  # fmt: skip

    return run


@pytest.fixture
def refused(tmp_path):
    """``refused(process, *words)``: one line that holds the words, no traceback, no file in the output folders."""

    def check(process, *words: str) -> None:
        assert process.returncode == 1, process.stderr
        lines = [line for line in process.stderr.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1, process.stderr
        assert [word for word in words if word not in lines[0]] == [], lines[0]
        assert "Traceback" not in process.stderr + process.stdout, process.stderr + process.stdout
        assert process.stderr.rstrip().splitlines()[-1] == lines[0]
        # Current run has terminated due to exception: what Ignite says of it would be a second line of error
        assert "terminated due to exception" not in process.stderr + process.stdout
        errors = [line for line in (process.stderr + process.stdout).splitlines() if " - ERROR - " in line]
        assert [line for line in errors if "<tifffile." not in line] == []  # what a reader says stays
        left = [p for folder in ("out", "models") for p in (tmp_path / folder).rglob("*") if p.is_file()]
        # a training that ends at its first case has opened its log; an empty one of TensorBoard is whole
        assert [p for p in left if not p.name.startswith("events.out.tfevents.")] == []

    return check


@pytest.fixture
def handled(bundle, tmp_path):
    """``handled(process)`` are the statistics of an inference that went well."""

    def check(process) -> list[dict]:
        assert process.returncode == 0, process.stderr
        assert "Traceback" not in process.stderr
        assert len(list((tmp_path / "out").glob(f"*{bundle.small.segmentation}"))) == 1
        return json.loads((tmp_path / "out" / "statistics.json").read_text())

    return check


@pytest.fixture(scope="session")
def save():
    """``save(path, voxels, affine)`` writes a NIfTI file and returns its path."""

    def write(path: Path, voxels: np.ndarray, affine: np.ndarray) -> Path:
        nib.save(nib.Nifti1Image(voxels, affine), path)
        return path

    return write


@pytest.fixture(scope="session")
def labels_on_the_grid_of():
    """``labels_on_the_grid_of(source, segmentation)`` sees that both have one geometry and returns the labels."""

    def compare(source: Path, segmentation: Path) -> np.ndarray:
        from volseg.data.volume_reader import load_volume

        image, labels = load_volume(source), nib.load(segmentation)
        assert labels.get_data_dtype() == np.uint8
        assert labels.shape == tuple(image.shape[1:])
        np.testing.assert_allclose(labels.affine, np.asarray(image.affine), atol=1e-4)
        return np.asarray(labels.dataobj)

    return compare
