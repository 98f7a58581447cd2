# SPDX-License-Identifier: Apache-2.0
"""``torch.compile`` behind the runtime."""

from __future__ import annotations

import copy
import logging
import os
import pickle

import pytest
import torch
from monai.data import MetaTensor
from torch import nn
from torch._dynamo.utils import counters

from volseg.runtime import accelerate as runtime
from volseg.runtime.accelerate import accelerate

SHAPE = (1, 1, 6, 10, 8)


class Small(nn.Module):
    """As little to compile as there can be, but for a size in Python."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.dropout = nn.Conv3d(1, 4, 3, padding=1), nn.Dropout(0.5)

    def forward(self, x):
        if x.shape[2] % 2:
            raise ValueError(f"Small needs even sizes. Received: {tuple(x.shape)}")
        return self.dropout(torch.relu(self.conv(x)))


@pytest.fixture(scope="module")
def inductor(tmp_path_factory):
    """One folder for what the tests of this file compile."""
    return tmp_path_factory.mktemp("inductor")


@pytest.fixture(autouse=True)
def _surroundings(inductor, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(inductor))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    torch._dynamo.reset()


@pytest.fixture
def network():
    return Small().eval()


def image(shape=SHAPE):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def run(network, x):
    with torch.no_grad():
        return network(x)


def messages(caplog, level):
    return [r.getMessage() for r in caplog.records if r.levelno == level and r.name == "volseg.runtime.accelerate"]


@pytest.mark.parametrize(("native", "tolerance"), [(True, 0.02), (False, 1e-5)])
def test_it_is_the_network(network, native, tolerance, monkeypatch, caplog):
    monkeypatch.setattr(runtime, "bfloat16_is_native", lambda: native)
    fast = accelerate(network, mode="compile")
    with caplog.at_level(logging.INFO, "volseg.runtime.accelerate"):
        for shape in (SHAPE, (2, 1, 4, 7, 9)):
            expected = run(copy.deepcopy(network), image(shape))
            for context in (torch.no_grad, torch.inference_mode):
                with context():
                    y = fast(image(shape))
                assert y.dtype == torch.float32
                assert (y - expected).abs().max() <= tolerance * expected.abs().max()
    assert messages(caplog, logging.INFO) == ["runtime compile on CPU, 1 thread (input 1x1x6x10x8)"]
    assert messages(caplog, logging.WARNING) == []


def test_weights_may_change_and_training_goes_on(network):
    fast = accelerate(network, mode="compile")
    run(fast, image())
    with torch.no_grad():
        network.conv.weight.data.mul_(-2)
    fast.load_state_dict({k: v * 2 for k, v in network.state_dict().items()}, assign=True)
    expected = run(copy.deepcopy(network), image())
    assert (run(fast, image()) - expected).abs().max() <= 0.02 * expected.abs().max()
    fast.train()(image()).sum().backward()
    assert network.conv.weight.grad.abs().sum() > 0


def test_metadata_errors_and_copies_are_the_networks(network):
    fast = accelerate(network, mode="compile")
    x = MetaTensor(image(), meta={"filename_or_obj": "ct.nii.gz"})
    y = run(fast, x)
    assert y.meta["filename_or_obj"] == "ct.nii.gz"
    with pytest.raises(ValueError, match=r"even sizes. Received: \(1, 1, 7, 10, 8\)"):
        run(fast, image((1, 1, 7, 10, 8)))
    for other in (copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))):  # noqa: S301
        assert torch.equal(run(other, image()), y.as_tensor())
    assert list(fast.state_dict()) == list(network.state_dict())


def test_a_missing_compiler_is_one_warning(network, monkeypatch, caplog, tmp_path):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    fast, expected = accelerate(network, mode="compile"), run(copy.deepcopy(network), image())
    with torch._inductor.config.patch({"cpp.cxx": (None, "no-such-compiler")}):
        for _ in range(2):
            assert (run(fast, image()) - expected).abs().max() <= 0.02 * expected.abs().max()
    (warning,) = messages(caplog, logging.WARNING)
    assert "runs in place of compile: " in warning
    assert "compiler" in warning


def test_a_python_that_cannot_compile_is_said(network, monkeypatch, caplog):
    def refuse(*args, **kwargs):
        raise RuntimeError("torch.compile is not supported on Python 3.99+")

    monkeypatch.setattr(torch, "compile", refuse)
    run(accelerate(network, mode="compile"), image())
    (warning,) = messages(caplog, logging.WARNING)
    assert warning.endswith("runs in place of compile: torch.compile is not supported on Python 3.99+")


def test_a_second_start_does_not_compile(network, monkeypatch, tmp_path):
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    found = []
    for _ in range(2):
        torch._dynamo.reset()
        counters.clear()
        run(accelerate(network, mode="compile", cache_dir=str(tmp_path)), image((1, 1, 4, 6, 6)))
        found.append((counters["inductor"]["fxgraph_cache_miss"], counters["inductor"]["fxgraph_cache_hit"]))
    assert found == [(1, 0), (0, 1)]
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "inductor")
    assert list((tmp_path / "inductor").iterdir())
