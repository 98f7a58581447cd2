# SPDX-License-Identifier: Apache-2.0
"""What of TensorRT can be tested without a GPU: what is missing, how MONAI's function is called, what counts as right.

That the networks go through the ONNX export on the way is tested in ``tests/bundles/test_exports.py``.
"""

from __future__ import annotations

import copy
import importlib.util
import inspect
import logging

import pytest
import torch
from monai.networks import trt_compile
from monai.networks.trt_compiler import TrtCompiler
from torch import nn

from volseg.runtime.accelerate import accelerate
from volseg.runtime.network_state import agrees
from volseg.runtime.tensorrt import PRECISION, TensorRTNetwork, compile_network

needs_no_tensorrt = pytest.mark.skipif(importlib.util.find_spec("tensorrt") is not None, reason="tensorrt is installed")
needs_no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


@pytest.fixture
def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv3d(1, 2, 3, padding=1), nn.InstanceNorm3d(2, affine=True)).eval()


def image():
    return torch.randn(1, 1, 6, 8, 10, generator=torch.Generator().manual_seed(1))


@needs_no_tensorrt
def test_missing_packages_are_named(network, tmp_path):
    with pytest.raises(ImportError, match=r"missing: tensorrt, .*Install with: pip install tensorrt "):
        TensorRTNetwork(network, tmp_path)


@needs_no_gpu
def test_without_a_gpu_the_run_says_so_once_and_is_that_of_auto(network, caplog):
    fast, plain = accelerate(network, mode="tensorrt"), accelerate(copy.deepcopy(network))
    with torch.no_grad(), caplog.at_level(logging.INFO, "volseg.runtime.accelerate"):
        for _ in range(2):
            assert torch.equal(fast(image()), plain(image()))
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    (warning,) = warnings
    assert warning.endswith(" runs in place of tensorrt: tensorrt is for CUDA, the input is on CPU")
    assert sum(record.levelno == logging.INFO for record in caplog.records) == 2  # one for each of the two


def test_monai_takes_the_arguments(network, tmp_path, monkeypatch):
    """``trt_compile`` hands them on unseen, and only where there is a GPU."""
    given = {}

    def note(model, base_path, args=None, submodule=None, logger=None):
        given.update(args)
        return model

    assert inspect.signature(note).parameters.keys() == inspect.signature(trt_compile).parameters.keys()
    monkeypatch.setattr("monai.networks.trt_compile", note)
    compile_network(network, tmp_path / "engine")
    compiler = TrtCompiler(network, str(tmp_path / "engine.plan"), **given)
    assert compiler.precision == PRECISION == "fp16"
    assert compiler.input_names == ["input"]  # that of nn.Sequential


@needs_no_gpu
def test_the_network_stays_as_it_is(network, tmp_path):
    compiled = compile_network(network, tmp_path / "engine")
    assert compiled is not network
    assert not hasattr(network, "_trt_compiler")
    with torch.no_grad():
        assert torch.equal(compiled(image()), network(image()))


@pytest.mark.parametrize(
    ("actual", "right"),
    [([1.0, -2.05, 3.0], True), ([1.0, -2.0, 3.5], False), ([1.0, float("nan"), 3.0], False), ([1.0, -2.0], False)],
)
def test_what_is_no_number_does_not_agree(actual, right):
    assert agrees(torch.tensor(actual), torch.tensor([1.0, -2.0, 3.0])) == right
