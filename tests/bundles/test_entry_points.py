# SPDX-License-Identifier: Apache-2.0
"""Every way into a bundle: from every folder where the packages are installed, and where only the zip is there.

There, ``run`` works from every folder and the other commands from the bundle's own folder.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

NAMES = ("pdvnet_lung", "vnet_prostate", "resunet_mitoem")
FOLDERS = ("repository", "bundles", "bundle", "unrelated", "unpacked bundle")
# for run alone
ALSO_TO_RUN = ("folder of unpacked", "unrelated to unpacked")
run_from_everywhere = pytest.mark.parametrize("checkout", [*FOLDERS, *ALSO_TO_RUN], indirect=True)
# what takes seconds and finds its bundle as all else does
run_from_two_folders = pytest.mark.parametrize("checkout", ["unrelated", "unrelated to unpacked"], indirect=True)
from_two_folders = pytest.mark.parametrize("checkout", ["unrelated", "unpacked bundle"], indirect=True)
# of logits of the networks of the configs; V-Net and Res-UNet are narrower here
LARGEST_DIFFERENCE = 1e-4


@pytest.fixture(scope="module", params=NAMES)
def bundle_name(request) -> str:
    return request.param


class Checkout:
    """A copy of a bundle, installed or as unpacked from its zip, seen from a working directory."""

    def __init__(self, root: Path, unpacked: Path, folder: str, unrelated: Path) -> None:
        installed = root / "bundles" / unpacked.name
        self.bundle = unpacked if "unpacked" in folder else installed
        self.cwd = {
            "repository": root,
            "bundles": root / "bundles",
            "bundle": installed,
            "unpacked bundle": unpacked,
            "folder of unpacked": unpacked.parent,
        }.get(folder, unrelated)
        self.env = {} if "unpacked" in folder else {"PYTHONPATH": os.pathsep.join([str(root), str(installed)])}

    def config(self, name: str) -> str:
        """Path of a config as one would type it in the working directory."""
        path = self.bundle / "configs" / name
        return os.path.relpath(path, self.cwd) if self.bundle.is_relative_to(self.cwd) else str(path)


@pytest.fixture(scope="module")
def copied_root(root, bundle, tmp_path_factory) -> Path:
    """The code of the repository with one bundle, whose configs build the small network of the tests."""
    target = tmp_path_factory.mktemp("checkout") / "repository"
    ignore = shutil.ignore_patterns("__pycache__", "data", "output", "models", "docs")
    # volseg has a package called data
    shutil.copytree(root / "volseg", target / "volseg", ignore=shutil.ignore_patterns("__pycache__"))
    copied = target / "bundles" / bundle.name
    shutil.copytree(bundle.dir, copied, ignore=ignore)
    shutil.copytree(bundle.weights.parent, copied / "models")
    for path in (copied / "configs").glob("*.json"):
        config = json.loads(path.read_text())
        if "network_def" in config and config["network_def"]["_target_"] == bundle.small.network:
            config["network_def"] |= bundle.small.arguments
            path.write_text(json.dumps(config))
    return target


@pytest.fixture(scope="module")
def unpacked_bundle(copied_root, bundle_name, tmp_path_factory) -> Path:
    """The bundle alone, with volseg inside, as its zip has it."""
    target = tmp_path_factory.mktemp("download") / bundle_name
    shutil.copytree(copied_root / "bundles" / bundle_name, target)
    shutil.copytree(copied_root / "volseg", target / "volseg")
    return target


@pytest.fixture(params=FOLDERS)
def checkout(request, copied_root, unpacked_bundle, tmp_path) -> Checkout:
    (tmp_path / "unrelated").mkdir()
    return Checkout(copied_root, unpacked_bundle, request.param, tmp_path / "unrelated")


@pytest.fixture
def bundle_command(bare_runner, checkout):
    """Run a command that must succeed and must leave nothing in an unrelated working directory."""

    def run(*args: object):
        process = bare_runner.bundle(*args, cwd=checkout.cwd, env=checkout.env)
        assert process.returncode == 0, process.stderr
        if checkout.cwd.name == "unrelated":
            assert not list(checkout.cwd.iterdir())
        return process

    return run


@pytest.fixture
def script(bare_runner, checkout):
    """Run a script that must succeed; what it printed last, from JSON."""

    def run(code: str, *args: object):
        process = bare_runner.python(code, *args, cwd=checkout.cwd, env=checkout.env)
        assert process.returncode == 0, process.stderr
        return json.loads(process.stdout.splitlines()[-1])

    return run


@pytest.fixture(scope="module")
def eager(bundle):
    return bundle.network()


@pytest.fixture(scope="module")
def example(bundle) -> torch.Tensor:
    return torch.randn(1, 1, *bundle.spatial_size, generator=torch.Generator().manual_seed(0))


def larger(example: torch.Tensor) -> torch.Tensor:
    """A size that the export has not seen."""
    return torch.nn.functional.pad(example, (0, 16, 0, 0, 0, 16))


@run_from_everywhere
def test_run_inference_with_weights_and_output_inside_the_bundle(bundle_command, checkout, phantom, bundle):
    output = checkout.bundle / "output"
    bundle_command("run", "--config_file", checkout.config("inference.json"), "--input", phantom["image"])
    assert {p.name for p in (output / "inference").iterdir()} == bundle.results()
    shutil.rmtree(output)


@run_from_two_folders
def test_run_train_then_evaluate(bundle_command, checkout, train_overrides, phantom_overrides, tmp_path):
    train = checkout.config("train.json")
    folders = ("--output_dir", tmp_path / "out", "--ckpt_dir", tmp_path / "models")
    bundle_command("run", "--config_file", train, *train_overrides, *folders)
    assert (tmp_path / "models" / "model.pt").is_file()
    files = str([train, checkout.config("evaluate.json")])
    bundle_command("run", "--config_file", files, *phantom_overrides, *folders)
    assert (tmp_path / "out" / "per_case.csv").is_file()


def test_verify_metadata_offline(bundle_command, checkout, root):
    bundle_command(
        "verify_metadata", "--meta_file", checkout.config("metadata.json"),
        "--filepath", root / "tools" / "metadata_schema.json",
    )  # fmt: skip


@pytest.mark.parametrize("config", ["train.json", "inference.json"])
def test_verify_net_in_out(bundle_command, checkout, config):
    files = ("--meta_file", checkout.config("metadata.json"), "--config_file", checkout.config(config))
    process = bundle_command("verify_net_in_out", "network_def", *files)
    assert "verified with no error" in process.stdout


@from_two_folders
def test_ckpt_export_agrees_with_eager(bundle_command, checkout, weights, eager, example, tmp_path):
    files = ("--meta_file", checkout.config("metadata.json"), "--config_file", checkout.config("inference.json"))
    target = tmp_path / "model.ts"
    bundle_command("ckpt_export", "network_def", "--filepath", target, "--ckpt_file", weights, *files)
    exported = torch.jit.load(target)
    with torch.no_grad():
        for x in (example, larger(example)):
            assert (exported(x) - eager(x)).abs().max() <= LARGEST_DIFFERENCE


def test_ckpt_export_by_tracing_agrees_with_eager(bare_runner, unpacked_bundle, weights, eager, example, tmp_path):
    configs = unpacked_bundle / "configs"
    process = bare_runner.bundle(
        "ckpt_export", "network_def", "--filepath", tmp_path / "model.ts", "--ckpt_file", weights,
        "--meta_file", configs / "metadata.json", "--config_file", configs / "inference.json",
        "--use_trace", "True", "--input_shape", list(example.shape), cwd=unpacked_bundle,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    exported = torch.jit.load(tmp_path / "model.ts")
    with torch.no_grad():
        for x in (example, larger(example)):
            assert (exported(x) - eager(x)).abs().max() <= LARGEST_DIFFERENCE


@from_two_folders
def test_onnx_export_agrees_with_eager(bundle_command, checkout, weights, eager, example, tmp_path):
    target = tmp_path / "model.onnx"
    bundle_command(
        "onnx_export", "network_def", "--filepath", target, "--ckpt_file", weights,
        "--meta_file", checkout.config("metadata.json"), "--config_file", checkout.config("inference.json"),
        "--use_trace", "True", "--input_shape", list(example.shape), "--converter_kwargs",
        "{'input_names':['image'],'output_names':['pred'],'dynamic_axes':{'image':[2,3,4]}}",
    )  # fmt: skip
    session = onnxruntime.InferenceSession(target, providers=["CPUExecutionProvider"])
    for x in (example, larger(example)):
        (output,) = session.run(["pred"], {"image": x.numpy()})
        with torch.no_grad():
            assert np.abs(output - eager(x).numpy()).max() <= LARGEST_DIFFERENCE


LOAD = """
import json, sys
import torch
from monai.bundle import load
name, bundle_dir, workflow = sys.argv[1:]
network = load(name, bundle_dir=bundle_dir, source="monaihosting", workflow_type=workflow)
inside = sys.modules[type(network).__module__].__file__
total = sum(float(v.double().sum()) for v in network.state_dict().values())
print(json.dumps([type(network).__name__, inside, total]))
"""


@pytest.mark.parametrize("workflow", ["inference", "train"])
def test_load_gives_the_network_with_its_weights(script, checkout, bundle_name, eager, workflow):
    class_name, module, total = script(LOAD, bundle_name, checkout.bundle.parent, workflow)
    assert class_name == type(eager).__name__
    assert Path(module) == checkout.bundle / bundle_name / "network.py"
    assert total == pytest.approx(sum(float(v.double().sum()) for v in eager.state_dict().values()))


WORKFLOW = """
import json, sys
from monai.bundle import create_workflow
file, kind, *overrides = sys.argv[1:]
overrides = {k.lstrip("-"): v if v[0] not in "[{" else eval(v) for k, v in zip(overrides[::2], overrides[1::2])}
workflow = create_workflow("ConfigWorkflow", config_file=file, workflow_type=kind, **overrides)
workflow.initialize()
print(json.dumps([type(workflow.network_def).__name__, workflow.check_properties()]))
"""


@pytest.mark.parametrize(("config", "kind"), [("train.json", "train"), ("inference.json", "infer")])
def test_create_workflow_has_every_property(
    script, checkout, eager, phantom_overrides, phantom, weights, config, kind, tmp_path
):
    sizes = phantom_overrides if kind == "train" else ["--input", phantom["image"], "--weights", weights]
    overrides = [*sizes, "--output_dir", tmp_path / "out"]
    assert script(WORKFLOW, checkout.config(config), kind, *overrides) == [type(eager).__name__, []]


PROGRAM = """
import json, sys
import monai.bundle
config, image, output = sys.argv[1:]
monai.bundle.run(config_file=config, input=image, output_dir=output)
monai.bundle.verify_net_in_out("network_def", config_file=config, meta_file=config.replace("inference", "metadata"))
print(json.dumps("done"))
"""


def test_functions_of_monai_bundle_called_by_a_program(script, checkout, bundle, phantom, tmp_path):
    assert script(PROGRAM, checkout.config("inference.json"), phantom["image"], tmp_path / "out") == "done"
    assert (tmp_path / "out" / bundle.segmentation()).exists()


TUTORIAL = """
import json, sys
from monai.bundle import ConfigWorkflow
config, image, output = sys.argv[1:]
workflow = ConfigWorkflow(
    workflow_type="inference",
    config_file=config,
    meta_file=config.replace("inference.json", "metadata.json"),
    logging_file=config.replace("inference.json", "logging.conf"),
    input=image,
    output_dir=output,
)
workflow.initialize()
workflow.run()
workflow.finalize()
print(json.dumps("done"))
"""


@from_two_folders
def test_a_workflow_runs_as_in_the_tutorials_of_monai(script, checkout, bundle, phantom, tmp_path):
    assert script(TUTORIAL, checkout.config("inference.json"), phantom["image"], tmp_path / "out") == "done"
    assert {path.name for path in (tmp_path / "out").iterdir()} == bundle.results()


def test_real_process_without_volseg_installed(bare_runner, unpacked_bundle, bundle, weights, phantom, tmp_path):
    assert bare_runner.process("-c", "import volseg", cwd=tmp_path).returncode == 1
    process = bare_runner.process(
        "-m", "monai.bundle", "run", "--config_file", unpacked_bundle / "configs" / "inference.json",
        "--input", phantom["image"], "--output_dir", tmp_path / "out", "--weights", weights, cwd=tmp_path,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    assert (tmp_path / "out" / bundle.segmentation()).exists()


def test_the_config_of_one_copy_does_not_run_with_the_code_of_another(
    bare_runner, copied_root, unpacked_bundle, phantom, tmp_path
):
    other = copied_root / "bundles" / unpacked_bundle.name
    given = ("--config_file", unpacked_bundle / "configs" / "inference.json", "--input", phantom["image"])
    process = bare_runner.bundle("run", *given, "--output_dir", tmp_path / "out", cwd=other)
    assert process.returncode == 1
    (line,) = [line for line in process.stderr.splitlines() if line.startswith("error: ")]
    assert f"must run with the code in {unpacked_bundle / other.name}, got {other / other.name}." in line
    assert not (tmp_path / "out").exists()


RUN_ALL = """
import json, sys
from monai.bundle import run
for config, overrides in 2 * json.loads(sys.argv[1]):
    run(config_file=config, **overrides)
found = [sys.modules[f"{name}.network"].__file__ for name in ("pdvnet_lung", "vnet_prostate", "resunet_mitoem")]
print(json.dumps(found))
"""


def test_all_bundles_in_one_process_run_their_own_code(bare_runner, root, bundle_case, tmp_path):
    given = []
    for name in NAMES:  # each with a volseg of its own, as they are downloaded
        ignore = shutil.ignore_patterns("__pycache__", "data", "output", "models", "docs")
        shutil.copytree(root / "bundles" / name, tmp_path / name, ignore=ignore)
        shutil.copytree(root / "volseg", tmp_path / name / "volseg", ignore=shutil.ignore_patterns("__pycache__"))
        case = bundle_case(name)
        paths = {"input": case.phantom["image"], "weights": case.weights, "output_dir": tmp_path / "out" / name}
        small = {f"network_def#{key}": value for key, value in case.small.arguments.items()}
        overrides = {key: str(path) for key, path in paths.items()} | small | {"device": "cpu"}
        given.append([str(tmp_path / name / "configs" / "inference.json"), overrides])
    process = bare_runner.python(RUN_ALL, json.dumps(given))
    assert process.returncode == 0, process.stderr
    assert json.loads(process.stdout.splitlines()[-1]) == [str(tmp_path / n / n / "network.py") for n in NAMES]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(NAMES)
