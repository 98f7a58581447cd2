# SPDX-License-Identifier: Apache-2.0
"""An accelerated network is the network, only faster."""

from __future__ import annotations

import copy
import importlib.util
import logging
import pickle
import sys
import tomllib
from pathlib import Path

import pytest
import torch
from monai.data import MetaTensor
from packaging.requirements import Requirement
from pdvnet_lung.network import PDVNet
from torch import nn

from volseg.errors import UserError
from volseg.inferers.monte_carlo_dropout import MonteCarloDropoutInferer
from volseg.inferers.sliding_window import BlendedSlidingWindow
from volseg.runtime import accelerate as runtime
from volseg.runtime import openvino as openvino_runtime
from volseg.runtime.accelerate import MODES, accelerate, bfloat16_is_native

SHAPE = (1, 1, 16, 24, 32)
CPU_MODES = ("eager", "channels_last", "bf16", "openvino")
HAS_OPENVINO = importlib.util.find_spec("openvino") is not None
needs_openvino = pytest.mark.skipif(not HAS_OPENVINO, reason="openvino is not installed")


class Small(nn.Module):
    """Two convolutions, normalisation and a skip; sizes must be even."""

    def __init__(self, dimensions: int = 3, upsampling: str = "trilinear") -> None:
        super().__init__()
        conv, norm = (nn.Conv3d, nn.BatchNorm3d) if dimensions == 3 else (nn.Conv2d, nn.BatchNorm2d)
        self.conv, self.norm = conv(1, 8, 3, 2, 1), norm(8)
        self.out = conv(8, 3, 3, 1, 1)
        self.upsampling = upsampling

    def forward(self, x):
        if any(size % 2 for size in x.shape[2:]):
            raise ValueError(f"Small needs even sizes. Received: {tuple(x.shape)}")
        y = self.out(torch.relu(self.norm(self.conv(x))))
        y = nn.functional.interpolate(y, scale_factor=2.0, mode=self.upsampling)
        return (y, x) if self.training else y


class Large(nn.Module):
    """Most of the work is in a convolution with a large kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.conv = nn.Conv3d(1, 16, 3, 1, 1), nn.Conv3d(16, 16, 5, 1, 2)
        self.activation, self.out = nn.PReLU(16, 0.1), nn.ConvTranspose3d(16, 3, 2, 2)

    def forward(self, x):
        x = self.first(x)
        return self.out(self.activation(self.conv(x) + x))


@pytest.fixture(autouse=True)
def _surroundings(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # so small are the networks that threads would only wait for each other
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def network():
    torch.manual_seed(0)
    return Small().eval()


def image(shape=SHAPE):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def run(network, x):
    with torch.no_grad():
        return network(x)


def assert_close(actual, expected, tolerance=0.02):
    """Equal but for bfloat16, whose products are right to one part in 256."""
    assert actual.shape == expected.shape
    assert actual.dtype == torch.float32
    assert (actual - expected).abs().max() <= tolerance * expected.abs().max()


def warnings_of(caplog):
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


@pytest.mark.parametrize("mode", CPU_MODES)
@pytest.mark.parametrize("shape", [SHAPE, (2, 1, 34, 16, 70), (1, 1, 96, 80, 64)])
def test_modes_agree_with_the_network(network, mode, shape, caplog, monkeypatch):
    if mode == "openvino" and not HAS_OPENVINO:
        pytest.skip("openvino is not installed")
    monkeypatch.setattr(runtime, "bfloat16_is_native", lambda: True)
    expected = run(copy.deepcopy(network), image(shape))
    assert_close(run(accelerate(network, mode=mode), image(shape)), expected)
    assert not warnings_of(caplog)


@needs_openvino
def test_openvino_in_float32_is_exact(network, monkeypatch):
    monkeypatch.setattr(runtime, "bfloat16_is_native", lambda: False)
    assert_close(run(accelerate(network, mode="openvino"), image()), run(network, image()), tolerance=1e-5)


@pytest.mark.parametrize("mode", CPU_MODES)
def test_parts_of_a_larger_volume(network, mode):
    """Inputs that are not contiguous, as the windows of a sliding window are not."""
    if mode == "openvino" and not HAS_OPENVINO:
        pytest.skip("openvino is not installed")
    fast, volume = accelerate(network, mode=mode), image((1, 1, 40, 48, 50))
    expected = copy.deepcopy(network)
    for window in (volume[..., 3:19, 5:37, 8:24], volume[..., 1:17, 2:34, 30:46], volume.transpose(2, 4)[..., 4:44]):
        assert not window.is_contiguous()
        assert_close(run(fast, window), run(expected, window))


@pytest.mark.parametrize("mode", CPU_MODES)
def test_images_of_two_dimensions(mode):
    network = Small(dimensions=2, upsampling="bilinear").eval()
    x = image((3, 1, 48, 20))
    expected = run(copy.deepcopy(network), x)
    assert_close(run(accelerate(network, mode=mode), x), expected)


@pytest.mark.parametrize("mode", MODES)
def test_same_keys_and_same_parameters(network, mode):
    fast = accelerate(network, mode=mode)
    assert list(fast.state_dict()) == list(network.state_dict())
    assert [name for name, _ in fast.named_parameters()] == [name for name, _ in network.named_parameters()]
    assert all(a is b for a, b in zip(fast.parameters(), network.parameters(), strict=True))
    assert fast.upsampling == network.upsampling
    assert nn.ModuleDict({"a": fast}).state_dict().keys() == nn.ModuleDict({"a": network}).state_dict().keys()


@pytest.mark.parametrize("mode", CPU_MODES)
def test_weights_loaded_at_any_time_are_used(network, mode):
    torch.manual_seed(1)
    others = [Small().eval() for _ in range(2)]
    fast = accelerate(network, mode=mode)
    for other in others:  # before the first forward, and after it
        fast.load_state_dict(other.state_dict())
        assert_close(run(fast, image()), run(other, image()))
    nn.ModuleDict({"a": fast}).load_state_dict(nn.ModuleDict({"a": others[0]}).state_dict())
    assert_close(run(fast, image()), run(others[0], image()))


@pytest.mark.parametrize("change", ["in_place", "data", "buffer", "assign"])
def test_changed_weights_are_used(network, change, caplog):
    fast = accelerate(network, mode="openvino")
    before = run(fast, image())
    with torch.no_grad():
        if change == "in_place":
            network.out.weight.mul_(-2)
        elif change == "data":
            network.out.weight.data.mul_(-2)
        elif change == "buffer":
            network.norm.running_mean.add_(1)
        else:
            fast.load_state_dict({k: v * 2 for k, v in network.state_dict().items()}, assign=True)
    after = run(fast, image())
    assert not torch.allclose(before, after, rtol=0.1)
    assert_close(after, run(network, image()))
    assert not HAS_OPENVINO or not warnings_of(caplog)


def test_training_passes_through(network):
    fast = accelerate(network, mode="openvino")
    run(fast, image())
    fast.train()
    assert network.training
    assert network.conv.training
    y, x = fast(image())
    y.mean().backward()
    assert network.conv.weight.grad.abs().sum() > 0
    assert x.shape == SHAPE
    assert not fast.eval().training
    network.train()
    assert fast.training


def test_an_input_that_requires_a_gradient_gets_one(network):
    x = image().requires_grad_()
    accelerate(network, mode="openvino")(x).sum().backward()
    assert x.grad.abs().sum() > 0


def test_weights_can_be_trained_after_inference_mode(network):
    fast = accelerate(network, mode="channels_last")
    with torch.inference_mode():
        fast(image())
    fast.train()(image())[0].sum().backward()


def test_a_missing_openvino_is_one_warning(network, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "openvino", None)
    fast = accelerate(network, mode="openvino")
    with caplog.at_level(logging.INFO, "volseg.runtime.accelerate"):
        for _ in range(2):
            assert_close(run(fast, image()), run(network, image()))
    assert len(warnings_of(caplog)) == 1
    assert "pip install openvino" in warnings_of(caplog)[0]
    assert sum(record.levelno == logging.INFO for record in caplog.records) == 1


@needs_openvino
def test_a_network_that_openvino_lacks_is_one_warning(caplog):

    class Bessel(nn.Module):
        def forward(self, x):
            return torch.special.bessel_j0(x)

    fast = accelerate(Bessel().eval(), mode="openvino")
    for _ in range(2):
        assert_close(run(fast, image()), torch.special.bessel_j0(image()))
    assert len(warnings_of(caplog)) == 1
    assert "bessel" in warnings_of(caplog)[0]


@needs_openvino
def test_a_wrong_conversion_is_not_used(caplog):

    class SizeInPython(nn.Module):
        def forward(self, x):
            return x * float(x.shape[2])

    fast = accelerate(SizeInPython().eval(), mode="openvino")
    assert_close(run(fast, image((1, 1, 128, 64, 32))), image((1, 1, 128, 64, 32)) * 128)
    assert len(warnings_of(caplog)) == 1
    assert "other numbers" in warnings_of(caplog)[0]


def test_a_network_of_one_size(caplog):
    network = nn.Sequential(nn.Flatten(), nn.Linear(48 * 40, 5)).eval()
    x = image((2, 1, 48, 40))
    assert_close(run(accelerate(network, mode="openvino"), x), run(network, x))
    assert not warnings_of(caplog)


def test_errors_of_the_network_stay_its_own(network, caplog):
    fast = accelerate(network, mode="openvino")
    with pytest.raises(ValueError, match=r"even sizes. Received: \(1, 1, 17, 24, 32\)"):
        run(fast, image((1, 1, 17, 24, 32)))
    assert_close(run(fast, image()), run(network, image()))
    assert not warnings_of(caplog)


def test_no_bfloat16_without_hardware(network, monkeypatch, caplog):
    monkeypatch.setattr(runtime, "bfloat16_is_native", lambda: False)
    assert_close(run(accelerate(network, mode="bf16"), image()), run(network, image()), tolerance=1e-5)
    assert len(warnings_of(caplog)) == 1


def test_unknown_mode():
    with pytest.raises(UserError, match=r"mode must be one of auto, .*, got 'fast'"):
        accelerate(Small(), mode="fast")


def test_the_decision_is_logged_once(network, caplog):
    with caplog.at_level(logging.INFO, "volseg.runtime.accelerate"):
        fast = accelerate(network, mode="eager")
        for _ in range(2):
            run(fast, image())
    assert caplog.messages == ["runtime eager on CPU, 1 thread (input 1x1x16x24x32)"]


@needs_openvino
def test_a_second_start_reads_the_cache(network, tmp_path, monkeypatch, caplog):
    expected = run(accelerate(network, mode="openvino", cache_dir=str(tmp_path)), image())
    assert len(list((tmp_path / "openvino").iterdir())) == 1
    converted = []
    convert = openvino_runtime.OpenVINONetwork._convert
    monkeypatch.setattr(
        openvino_runtime.OpenVINONetwork, "_convert", lambda *given: converted.append(1) or convert(*given)
    )
    second = accelerate(copy.deepcopy(network), mode="openvino", cache_dir=str(tmp_path))
    assert torch.equal(run(second, image()), expected)
    assert not converted
    with torch.no_grad():
        network.out.bias.add_(1)
    run(accelerate(network, mode="openvino", cache_dir=str(tmp_path)), image())
    assert len(converted) == 1
    assert not warnings_of(caplog)


@needs_openvino
def test_a_damaged_cache_is_replaced(network, tmp_path):
    run(accelerate(network, mode="openvino", cache_dir=str(tmp_path)), image())
    (path,) = (tmp_path / "openvino").glob("*/model.bin")
    size = path.stat().st_size
    path.write_bytes(bytes(size))
    assert_close(run(accelerate(network, mode="openvino", cache_dir=str(tmp_path)), image()), run(network, image()))
    assert path.read_bytes() != bytes(size)


def test_a_cache_that_cannot_be_written_is_no_failure(network, tmp_path, caplog):
    (tmp_path / "file").touch()
    fast = accelerate(network, mode="openvino", cache_dir=str(tmp_path / "file"))
    assert_close(run(fast, image()), run(network, image()))
    assert not warnings_of(caplog)


@needs_openvino
def test_few_shapes_and_files_are_kept(network, tmp_path, monkeypatch):
    monkeypatch.setattr(openvino_runtime, "CACHE_ENTRIES", 2)
    fast = accelerate(network, mode="openvino", cache_dir=str(tmp_path))
    for size in (16, 18, 20):
        run(fast, image((1, 1, size, 24, 32)))
    assert len(fast._engines["openvino"]._compiled) == 2
    assert len(list((tmp_path / "openvino").iterdir())) == 2


def test_metadata_of_the_image_stay_with_the_output(network):
    affine = torch.diag(torch.tensor([2.0, 3.0, 4.0, 1.0], dtype=torch.float64))
    x = MetaTensor(image()[0], affine=affine, meta={"filename_or_obj": "ct.nii.gz"})[None]
    x.is_batch = True
    expected = run(network, x)
    y = run(accelerate(network, mode="openvino"), x)
    assert isinstance(y, MetaTensor)
    assert y.is_batch == expected.is_batch
    assert torch.equal(y.affine, expected.affine)
    assert y.meta["filename_or_obj"] == "ct.nii.gz"
    assert_close(y.as_tensor(), expected.as_tensor())


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])  # noqa: S301
def test_copies_are_independent(network, copied):
    fast = accelerate(network, mode="openvino")
    before = run(fast, image())
    other = copied(fast)
    with torch.no_grad():
        fast.out.weight.zero_()
    assert torch.equal(run(other, image()), before)
    assert next(other.parameters()) is next(other._network.parameters())


@pytest.mark.parametrize("mode", ["auto", "openvino", "compile", "bf16"])
def test_monte_carlo_dropout_draws_anew(mode, large, monkeypatch, caplog):
    if mode == "openvino" and not HAS_OPENVINO:
        pytest.skip("openvino is not installed")
    monkeypatch.setattr(runtime, "bfloat16_is_native", lambda: True)
    network = nn.Sequential(large, nn.Dropout(0.5)).eval()
    fast, inferer = accelerate(network, mode=mode), MonteCarloDropoutInferer()
    expected = run(copy.deepcopy(network), image())
    if mode != "compile":
        assert_close(run(fast, image()), expected, 0.03)  # an engine without dropout is there
    with torch.no_grad():
        first, second = (inferer(image(), fast.train()) for _ in range(2))
    assert not torch.equal(first, second)
    kept = (first != 0) & (second != 0)
    assert 0.2 < kept.float().mean() < 0.3
    assert (first[kept] - 2 * expected[kept]).abs().max() <= 0.06 * expected.abs().max()
    assert not warnings_of(caplog)
    if mode != "compile":
        assert_close(run(fast.eval(), image()), expected, 0.03)


@pytest.mark.parametrize("mode", CPU_MODES)
def test_windows_slide(mode, monkeypatch, caplog):
    if mode == "openvino" and not HAS_OPENVINO:
        pytest.skip("openvino is not installed")
    monkeypatch.setattr(runtime, "bfloat16_is_native", lambda: True)
    torch.manual_seed(0)
    network = nn.Conv3d(1, 2, 3, padding=1).eval()
    inferer = BlendedSlidingWindow(window=(4, 8, 10), overlap=(0.5, 0.25, 0.5))
    x = image((1, 1, 6, 20, 15))
    expected = inferer(x, copy.deepcopy(network))
    with caplog.at_level(logging.INFO, "volseg.runtime.accelerate"):
        assert_close(inferer(x, accelerate(network, mode=mode)), expected)
    assert not warnings_of(caplog)
    assert len(caplog.messages) == 1


def test_exports_are_the_networks(network):
    fast = accelerate(network, mode="openvino")
    run(fast, image())
    expected = run(network, image())
    larger = image((1, 1, 32, 24, 16))
    traced = torch.jit.trace(fast, image())
    assert torch.allclose(run(traced, larger), run(network, larger), atol=1e-5)
    exported = torch.export.export(fast, (image(),))
    assert exported.state_dict.keys() == network.state_dict().keys() - {""}
    assert torch.allclose(run(exported.module(), image()), expected, atol=1e-5)


def test_script_compiles_the_network():
    network = nn.Sequential(nn.Conv3d(1, 2, 3), nn.PReLU()).eval()
    scripted = torch.jit.script(accelerate(network, mode="openvino"))
    assert torch.allclose(run(scripted, image()), run(network, image()), atol=1e-6)


@pytest.mark.parametrize("mode", ["bf16", "openvino"])
def test_labels_of_a_trained_network_agree(network, mode):
    x = nn.functional.interpolate(image((1, 1, 4, 3, 2)), (32, 24, 16), mode="trilinear")
    target = (x[:, 0] > 0).long() + (x[:, 0] > 0.5)
    network.train()
    optimizer = torch.optim.Adam(network.parameters(), lr=0.02)
    for _ in range(40):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(x)[0], target).backward()
        optimizer.step()
    network.eval()
    expected = run(network, x).argmax(1)
    assert (expected == target).float().mean() > 0.9
    assert (run(accelerate(network, mode=mode), x).argmax(1) == expected).float().mean() >= 0.999


@pytest.mark.parametrize("shape", [(1, 1, 32, 40, 16), (2, 1, 96, 32, 72)])
@needs_openvino
def test_pdvnet(shape, caplog):
    """A network that checks its sizes in Python, upsamples and concatenates."""
    torch.manual_seed(0)
    network = PDVNet(num_layers=(1, 1, 1)).eval()
    assert_close(run(accelerate(network, mode="openvino"), image(shape)), run(network, image(shape)), tolerance=0.05)
    assert not warnings_of(caplog)
    with pytest.raises(ValueError, match=r"multiples of 8, got 33 along X of \(1, 1, 33, 40, 16\)"):
        run(accelerate(network, mode="openvino"), image((1, 1, 33, 40, 16)))


@pytest.fixture
def large(monkeypatch):
    monkeypatch.setattr(runtime, "SMALL_VOXELS", 1000)
    torch.manual_seed(0)
    return Large().eval()


def test_openvino_does_not_call_home(monkeypatch):
    for name in ("openvino", "openvino_telemetry"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    seen = []
    monkeypatch.setattr(
        openvino_runtime.importlib, "import_module", lambda name: seen.append((name, sys.modules["openvino_telemetry"]))
    )
    openvino_runtime._import_openvino()
    assert seen == [("openvino", None)]
    assert "openvino_telemetry" not in sys.modules


def test_the_extra_holds_the_version_of_the_pinned_set():
    root = Path(__file__).parents[3]
    extras = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    (extra,) = map(Requirement, extras["openvino"])
    lines = (root / "requirements.txt").read_text(encoding="utf-8").splitlines()
    (pinned,) = (line.partition("==")[2] for line in lines if line.startswith("openvino=="))
    assert extra.specifier.contains(pinned)
    assert {specifier.operator for specifier in extra.specifier} == {">=", "<"}


def test_bfloat16_is_native_says_yes_or_no():
    assert bfloat16_is_native() in (True, False)


@pytest.fixture
def capped(monkeypatch):
    """This process under a cap; the runtime asks once for each process."""
    bfloat16_is_native.cache_clear()
    yield lambda value: monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", value)
    bfloat16_is_native.cache_clear()


@pytest.mark.parametrize("instructions", ["AVX512_CORE_VNNI", "AVX2", "avx2"])
def test_under_the_cap_there_is_no_bfloat16(capped, instructions):
    capped(instructions)
    assert not bfloat16_is_native()


def test_other_caps_change_nothing(capped):
    without = bfloat16_is_native()
    bfloat16_is_native.cache_clear()
    capped("AVX512_CORE_AMX")
    assert bfloat16_is_native() == without
