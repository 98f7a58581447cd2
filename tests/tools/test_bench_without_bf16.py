# SPDX-License-Identifier: Apache-2.0
"""What the runtime is worth on a CPU without bfloat16, and how a process is made to be on one."""

from __future__ import annotations

import json
import os

import pytest

from tools import REPOSITORY
from tools.bench import pdvnet, without_bf16
from tools.bench.processes import in_fresh_process
from tools.bench.without_bf16 import INSTRUCTION_SETS, compare_modes
from volseg.runtime.accelerate import bfloat16_is_native

FOLDER = REPOSITORY / "docs" / "benchmarks"
NAMES = ("pdvnet_lung", "vnet_prostate", "resunet_mitoem_r", "resunet_mitoem_h")


@pytest.mark.parametrize("instructions", INSTRUCTION_SETS)
@pytest.mark.parametrize("name", NAMES)
def test_twice_as_fast_or_left_alone(name, instructions):
    path = FOLDER / f"{name}_without_bf16.json"
    if not path.exists():
        pytest.skip(f"python -m tools bench {path.stem} writes it")
    rows = {row["mode"]: row for row in json.loads(path.read_text(encoding="utf-8"))["rows"]}
    eager, auto = (rows[f"{mode}, {instructions}"] for mode in ("eager", "auto"))
    assert eager["ran"] == "PyTorch float32 eager"
    assert auto["ratio"] >= 2 or auto["ran"] == eager["ran"]
    assert "bf16" not in auto["ran"]
    assert auto["agreement"] >= 0.9999


@pytest.fixture
def capped(monkeypatch):
    """This process under a cap; the runtime asks once for each process."""
    bfloat16_is_native.cache_clear()
    yield lambda value: monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", value)
    bfloat16_is_native.cache_clear()


@pytest.mark.parametrize("instructions", [*(cap["ONEDNN_MAX_CPU_ISA"] for cap in INSTRUCTION_SETS.values()), "avx2"])
def test_under_the_cap_there_is_no_bfloat16(capped, instructions):
    capped(instructions)
    assert not bfloat16_is_native()


def test_other_caps_change_nothing(capped):
    without = bfloat16_is_native()
    bfloat16_is_native.cache_clear()
    capped("AVX512_CORE_AMX")
    assert bfloat16_is_native() == without


def test_variables_reach_the_process(monkeypatch):
    monkeypatch.setenv("VOLSEG_TEST_KEPT", "a")
    assert in_fresh_process(os.getenv, "VOLSEG_TEST_GIVEN", environment={"VOLSEG_TEST_GIVEN": "b"}) == "b"
    assert in_fresh_process(os.getenv, "VOLSEG_TEST_KEPT", environment={"VOLSEG_TEST_GIVEN": "b"}) == "a"


def test_modes_are_compared(monkeypatch, capped, tmp_path):
    capped("AVX2")
    monkeypatch.setattr(without_bf16, "in_fresh_process", lambda function, *given, environment: function(*given))
    monkeypatch.setattr(pdvnet, "BUNDLE", tmp_path)  # without weights
    result = without_bf16.bench_pdvnet(1, seed=0, size=(32, 40, 16))
    rows = {row["mode"]: row for row in result["rows"]}
    assert list(rows) == ["eager, AVX-512", "auto, AVX-512", "eager, AVX2", "auto, AVX2"]
    assert {row["ran"] for row in rows.values()} == {"PyTorch float32 eager", "PyTorch float32 channels_last"}
    assert min(row["agreement"] for row in rows.values()) > 0.999
    assert "AVX2 PyTorch float32 channels_last" in result["note"]


def test_without_a_cap_nothing_is_compared(capped):
    if not bfloat16_is_native():
        pytest.skip("this CPU has no bfloat16")
    with pytest.raises(RuntimeError, match="capped"):
        compare_modes("vnet", (16, 16, 16), 1, 0)
