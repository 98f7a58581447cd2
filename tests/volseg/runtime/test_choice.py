# SPDX-License-Identifier: Apache-2.0
"""The fastest way to run a network is measured once, and only where that pays."""

from __future__ import annotations

import json
import logging
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from volseg.runtime import accelerate as runtime
from volseg.runtime import choice as choices
from volseg.runtime.accelerate import accelerate
from volseg.runtime.choice import centre, choose

LARGE = (1, 1, 64, 64, 64)


@pytest.fixture
def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv3d(1, 4, 3, padding=1), nn.Conv3d(4, 2, 3, padding=1)).eval()


class Ways:
    """Ways that take a given time of a clock and add a given value; ``seen`` holds the shapes that each was given."""

    now = 0.0

    def __init__(self, **ways: tuple[float, float]) -> None:
        self.ways, self.seen = ways, {way: [] for way in ways}

    def run(self, way: str, x: torch.Tensor) -> torch.Tensor:
        seconds, error = self.ways[way]
        self.seen[way].append(tuple(x.shape))
        Ways.now += seconds
        return x + error * x.abs()

    def choose(self, folder, shape=LARGE, network=None):
        runs = {way: partial(self.run, way) for way in self.ways}
        return choose(network or nn.Identity(), runs, torch.ones(shape), folder)


@pytest.fixture(autouse=True)
def _clock(monkeypatch):
    monkeypatch.setattr(choices, "time", SimpleNamespace(perf_counter=lambda: Ways.now))


def test_the_fastest_is_taken_and_the_reason_said(tmp_path):
    ways = Ways(eager=(0.3, 0), bf16=(0.02, 0.01), openvino=(0.1, 0))
    choice = ways.choose(tmp_path)
    assert choice.mode == "bf16"
    assert choice.why == ", fastest at 1x1x32x32x32: bf16 20 ms, openvino 100 ms, eager 300 ms"
    assert {shape for shapes in ways.seen.values() for shape in shapes} == {(1, 1, 32, 32, 32)}


def test_what_gives_other_numbers_is_not_taken(tmp_path):
    choice = Ways(eager=(0.05, 0), wrong=(0, 0.5), nothing=(0, float("nan")), right=(0, 0.01)).choose(tmp_path)
    assert choice.mode == "right"
    assert choice.why.endswith("; wrong: other numbers than eager; nothing: other numbers than eager")


def test_what_fails_is_not_taken(tmp_path):
    def fail(x):
        raise KeyError("no operator")

    choice = choose(nn.Identity(), {"eager": torch.clone, "other": fail}, torch.ones(LARGE), tmp_path)
    assert choice.mode == "eager"
    assert choice.why.endswith("; other: 'no operator'")


def test_what_is_slow_is_not_timed_again(tmp_path):
    ways = Ways(eager=(0.02, 0), slow=(0.5, 0))
    assert ways.choose(tmp_path).mode == "eager"
    assert len(ways.seen["slow"]) == 2  # to compare its output, and to time it
    assert len(ways.seen["eager"]) > 2


def test_a_choice_is_remembered_for_network_size_and_ways(tmp_path):
    first = Ways(eager=(0.05, 0), other=(0, 0)).choose(tmp_path)
    again = Ways(eager=(0, 0), other=(0.05, 0))
    found = again.choose(tmp_path)
    assert found == (first.mode, f"{first.why}; measured before")
    assert again.seen == {"eager": [], "other": []}
    assert again.choose(tmp_path, (1, 1, 64, 64, 100)).mode == "other"  # less than twice the voxels
    assert not again.seen["eager"]
    assert again.choose(tmp_path, (1, 1, 64, 64, 128)).mode == "eager"
    assert again.choose(tmp_path, network=nn.Tanh()).mode == "eager"
    assert Ways(eager=(0, 0)).choose(tmp_path).mode == "eager"
    assert len(list(tmp_path.iterdir())) == 4


def test_what_another_worker_chose_meanwhile_counts(tmp_path):
    ways = Ways(eager=(0, 0), other=(0.05, 0))
    run, nested = ways.run, []

    def run_beside_another(way, x):
        if not nested:
            nested.append(Ways(eager=(0.05, 0), other=(0, 0)).choose(tmp_path).mode)
        return run(way, x)

    ways.run = run_beside_another
    assert ways.choose(tmp_path).mode == "other"
    assert nested == ["other"]


@pytest.mark.parametrize("content", ["{", "[]", '{"mode": "gone", "why": ""}', '{"mode": "eager"}'])
def test_a_damaged_memory_is_replaced(tmp_path, content):
    ways = Ways(eager=(0, 0), other=(0.05, 0))
    ways.choose(tmp_path)
    (path,) = tmp_path.iterdir()
    path.write_text(content, encoding="utf-8")
    ways.choose(tmp_path)
    assert json.loads(path.read_text(encoding="utf-8"))["mode"] == "eager"


def test_a_folder_that_cannot_be_written_is_no_failure(tmp_path):
    (tmp_path / "file").touch()
    assert Ways(eager=(0, 0)).choose(tmp_path / "file").mode == "eager"


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((1, 1, 512, 512, 64), (1, 1, 64, 128, 64)),
        ((4, 2, 128, 128, 64), (1, 2, 32, 64, 64)),
        ((1, 1, 100, 64, 64), (1, 1, 36, 32, 32)),
        ((2, 3, 512, 520), (1, 3, 128, 136)),
        ((1, 1, 33, 40, 16), (1, 1, 33, 40, 16)),
    ],
)
def test_the_part_is_the_centre_and_keeps_remainders(shape, expected):
    x = torch.arange(torch.Size(shape).numel(), dtype=torch.float32).view(shape)
    part = centre(x)
    assert part.shape == expected
    middle = tuple(size // 2 for size in part.shape[2:])
    assert part[(0, 0, *middle)] == x[(0, 0, *(size // 2 for size in shape[2:]))]


def modes_run(network, winner="eager"):
    """The accelerated network, which takes less time in one mode, and the list of what it runs."""
    fast, ran = accelerate(network), []
    run = fast._run

    def note(mode, x):
        ran.append(mode)
        Ways.now += mode != winner
        return run(mode, x)

    object.__setattr__(fast, "_run", note)
    return fast, ran


@pytest.mark.parametrize(("native", "mode"), [(True, "bf16"), (False, "channels_last")])
def test_small_inputs_do_not_pay_for_a_measurement(network, native, mode, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(runtime, "bfloat16_is_native", lambda: native)
    fast, ran = modes_run(network)
    with torch.no_grad():
        fast(torch.rand(1, 1, 64, 64, 63))
    assert ran == [mode]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("winner", ["eager", "channels_last", "bf16", "openvino"])
def test_large_inputs_are_measured_once_and_run_in_the_chosen_mode(network, winner, monkeypatch, tmp_path, caplog):
    if winner == "openvino":
        pytest.importorskip("openvino")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(runtime, "bfloat16_is_native", lambda: True)
    x = torch.rand(LARGE)
    with torch.no_grad(), caplog.at_level(logging.INFO, "volseg.runtime.accelerate"):
        expected = network(x)
        fast, ran = modes_run(network, winner)
        for _ in range(2):
            assert (fast(x) - expected).norm() < 0.01 * expected.norm()
            assert fast.ran == winner
        assert list(dict.fromkeys(ran)) == ["eager", "channels_last", "bf16", "openvino"]
        assert ran[-3:] == [winner] * 3
        other, ran = modes_run(network, winner)
        other(x)
    assert ran == [winner]
    assert len(caplog.messages) == 2
    first, second = caplog.messages
    assert "(input 1x1x64x64x64), fastest at 1x1x32x32x32: " in first
    assert second == f"{first}; measured before"
    assert all(p.is_contiguous() for p in network.parameters()) == (winner == "eager")


def test_an_error_of_the_network_stays_its_own(tmp_path):
    network = nn.Conv3d(2, 2, 3).eval()
    with pytest.raises(RuntimeError, match=r"expected input.* to have 2 channels"):
        accelerate(network, cache_dir=str(tmp_path))(torch.zeros(LARGE))
