# SPDX-License-Identifier: Apache-2.0
"""TorchScript, ONNX and torch.export of every network give the network's numbers, at other sizes too.

The networks have few levels and layers here; ``test_entry_points.py`` exports those of the configs from the command
line.
"""

from __future__ import annotations

import copy
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import onnxruntime
import pytest
import torch
from monai.networks.nets import UNet
from monai.networks.trt_compiler import TrtCompiler
from monai.networks.utils import convert_to_onnx
from pdvnet_lung.comparisons import DenseVNet, SliceWise
from pdvnet_lung.network import PDVNet
from resunet_mitoem.network import ResUNetH, ResUNetR
from torch import nn
from torch.export import Dim
from vnet_prostate.network import VNet

from volseg.runtime.accelerate import accelerate

ROOT = Path(__file__).parents[2]
BUNDLES = ROOT / "bundles"
NAMES = ("pdvnet_lung", "vnet_prostate", "resunet_mitoem")
# The largest absolute difference of logits, which reach 20 here; docs/export.md says it.
LARGEST_DIFFERENCE = 1e-4
LAYERS = {"growth_rates": (2, 3, 4), "num_layers": (1, 2, 1), "dropout": 0.2, "checkpointing": True}
STAGES = {"channels": (2, 4), "encoder_convs": (1, 2), "decoder_convs": (2,)}
UNET_2D = {"spatial_dims": 2, "in_channels": 1, "out_channels": 6, "norm": "batch"}


@dataclass(frozen=True)
class Exported:
    """A small network and two sizes that it takes.

    Attributes:
        make: builds it.
        divisors: of the sizes.
        traced: size of the example that is exported.
        other: size that the export has not seen.
        scripted: whether it can be scripted, or only traced.
    """

    make: Callable[[], nn.Module]
    divisors: tuple[int, int, int]
    traced: tuple[int, int, int]
    other: tuple[int, int, int]
    scripted: bool = True


NETWORKS = {
    "PDVNet": Exported(lambda: PDVNet(**LAYERS), (8, 8, 8), (32, 24, 16), (16, 40, 24)),
    "DenseVNet": Exported(lambda: DenseVNet(**LAYERS), (8, 8, 8), (32, 24, 16), (16, 40, 24), scripted=False),
    "SliceWise": Exported(
        lambda: SliceWise(UNet(**UNET_2D, channels=(4, 4, 8), strides=(2, 2))),
        (4, 4, 1), (16, 24, 5), (32, 8, 3), scripted=False,
    ),
    "VNet": Exported(lambda: VNet(**STAGES), (2, 2, 2), (16, 12, 8), (8, 20, 24)),
    "VNet, practical": Exported(lambda: VNet(**STAGES, norm="instance"), (2, 2, 2), (16, 12, 8), (8, 20, 24)),
    "ResUNetR": Exported(lambda: ResUNetR(channels=(3, 4)), (1, 2, 2), (5, 16, 12), (3, 8, 20)),
    "ResUNetH": Exported(lambda: ResUNetH(channels=(3, 4)), (1, 2, 2), (5, 16, 12), (3, 8, 20)),
}  # fmt: skip


@pytest.fixture(scope="module", params=NETWORKS)
def exported(request) -> Exported:
    return NETWORKS[request.param]


@pytest.fixture(scope="module")
def network(exported) -> nn.Module:
    """In evaluation, with statistics other than the initial ones."""
    torch.manual_seed(0)
    network = exported.make()
    with torch.no_grad():
        network(noise(exported.traced, batch=2))
    return network.eval()


def noise(size: tuple[int, int, int], batch: int = 1) -> torch.Tensor:
    return torch.randn(batch, 1, *size, generator=torch.Generator().manual_seed(sum(size)))


def largest_difference(run: Callable[[torch.Tensor], torch.Tensor], network: nn.Module, *sizes) -> float:
    found = []
    for size in sizes:
        with torch.no_grad():
            expected, actual = network(noise(size)), run(noise(size))
        assert actual.shape == expected.shape
        found.append((actual - expected).abs().max().item())
    return max(found)


def onnx_network(path: Path) -> Callable[[torch.Tensor], torch.Tensor]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    return lambda x: torch.from_numpy(session.run(None, {given.name: x.numpy()})[0])


def page() -> str:
    return (ROOT / "docs" / "export.md").read_text(encoding="utf-8")


def onnx_arguments() -> dict:
    """What the page's command says to ``convert_to_onnx``."""
    (text,) = re.findall(r'--converter_kwargs "(\{.*\})"', page())
    return json.loads(text.replace("'", '"'))


def test_every_network_of_the_configs_is_here():
    configured = set()
    for path in BUNDLES.glob("*/configs/*.json"):
        network = json.loads(path.read_text(encoding="utf-8")).get("network_def", {})
        configured.add(network.get("_target_", "").rpartition(".")[2])
    assert configured - {"", "SectionInterpolationNetwork"} == {name.partition(",")[0] for name in NETWORKS} - {
        "ResUNetH"
    }
    for overlay in ("train_h", "inference_h"):
        config = json.loads((BUNDLES / "resunet_mitoem" / "configs" / f"{overlay}.json").read_text(encoding="utf-8"))
        assert config["network_def#_target_"].endswith(".ResUNetH")


def test_torch_export(exported, network, tmp_path):
    sizes = {
        axis: (divisor if divisor > 1 else 1) * Dim(name, min=2, max=64)
        for axis, (name, divisor) in enumerate(zip("xyz", exported.divisors, strict=True), start=2)
    }
    program = torch.export.export(accelerate(network), (noise(exported.traced),), dynamic_shapes={"x": sizes})
    torch.export.save(program, tmp_path / "model.pt2")
    loaded = torch.export.load(tmp_path / "model.pt2")
    assert loaded.state_dict.keys() == network.state_dict().keys()
    assert largest_difference(loaded.module(), network, exported.traced, exported.other) <= LARGEST_DIFFERENCE


def test_onnx_with_free_sizes(exported, network, tmp_path):
    target = tmp_path / "model.onnx"
    convert_to_onnx(network, [noise(exported.traced)], filename=target, use_trace=True, **onnx_arguments())
    run = onnx_network(tmp_path / "model.onnx")
    assert largest_difference(run, network, exported.traced, exported.other) <= LARGEST_DIFFERENCE


def test_onnx_on_the_way_to_tensorrt(exported, network, tmp_path):
    """What ``trt_compile`` does before TensorRT has its turn: casts around norms, then ONNX of one size."""

    class UpToONNX(TrtCompiler):
        def _onnx_to_trt(self, onnx_path):
            shutil.copytree(Path(onnx_path).parent, tmp_path, dirs_exist_ok=True)  # the weights are beside it

    copied = copy.deepcopy(network)
    x = noise(exported.traced)
    with torch.no_grad():
        UpToONNX(copied, str(tmp_path / "model.plan"))._build_and_save(copied, {"x": x})
    assert largest_difference(onnx_network(tmp_path / "model.onnx"), network, exported.traced) <= LARGEST_DIFFERENCE


def test_torchscript(exported, network):
    ways = {"traced": torch.jit.trace(accelerate(network), noise(exported.traced), check_trace=False)}
    if exported.scripted:
        ways["scripted"] = torch.jit.script(accelerate(network))
    for way, run in ways.items():
        assert largest_difference(run, network, exported.traced, exported.other) <= LARGEST_DIFFERENCE, way


def test_the_page_says_the_difference():
    text = " ".join(page().split())
    assert f"differ from the network's by at most {LARGEST_DIFFERENCE:.4f} (maximum absolute difference" in text


@pytest.mark.parametrize("bundle_name", NAMES, scope="module")
def test_the_pages_lines_for_torch_export_run(runner, bundle, tmp_path):
    """From the folder that holds the bundle, with the weights beside it."""
    (lines,) = re.findall(r"```python\n(.*?)```", page(), re.DOTALL)
    steps = dict(re.findall(r"(\w+)(?: =|:) (\(.*?\))", lines))
    lines = lines.replace(f"steps = {steps['steps']}", f"steps = {steps.get(bundle.name, steps['steps'])}")
    lines = lines.replace("NAME", bundle.name)
    folder = tmp_path / "bundles" / bundle.name
    ignore = shutil.ignore_patterns("__pycache__", "data", "output", "models", "docs")
    shutil.copytree(bundle.dir, folder, ignore=ignore)
    shutil.copytree(bundle.weights.parent, folder / "models")
    config = json.loads((folder / "configs" / "inference.json").read_text(encoding="utf-8"))
    recorded = {key: value for key, value in bundle.small.record.items() if key in config["network_def"]}
    config["network_def"] |= recorded | bundle.small.arguments
    (folder / "configs" / "inference.json").write_text(json.dumps(config), encoding="utf-8")
    process = runner.python(lines, cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    loaded = torch.export.load(tmp_path / "model.pt2")
    size = tuple(bundle.spatial_size)
    if bundle.name != "resunet_mitoem":
        size = tuple(max(edge, 32) for edge in size)  # at least two cells at the bottom
    assert largest_difference(loaded.module(), bundle.network(), size) <= LARGEST_DIFFERENCE
