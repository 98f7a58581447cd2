# SPDX-License-Identifier: Apache-2.0
"""How the bundles' networks run: one line in a config, off by one override, said once at the start."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

NAMES = ("pdvnet_lung", "vnet_prostate", "resunet_mitoem")
CONFIGS = sorted((Path(__file__).parents[2] / "bundles").glob("*/configs/*.json"))
DECISION = re.compile(r"runtime \w+ on CPU, 1 thread \(input 1x1x[\dx]+\)$")


@pytest.fixture(scope="module", params=NAMES)
def bundle_name(request) -> str:
    return request.param


def said(text: str, words: str) -> list[str]:
    """What follows the time and the level in the lines of a log that hold some words."""
    return [line.split(" - ", 2)[2] for line in text.splitlines() if words in line]


def test_one_line_of_a_config_decides():
    ways = {}
    for path in CONFIGS:
        config = json.loads(path.read_text(encoding="utf-8"))
        text = json.dumps(config)
        if "@runtime" in text:
            assert config["runtime"] == "auto", path
            assert text.count('"@runtime"') == 1, path
            ways[path.parts[-3], path.stem] = text
    inference = {(name, "inference") for name in NAMES}
    evaluate = {("pdvnet_lung", "evaluate"), ("vnet_prostate", "evaluate"), ("resunet_mitoem", "train")}
    assert ways.keys() == inference | evaluate | {("resunet_mitoem", "inference_blockwise")}


def test_the_decision_is_printed_once_and_an_override_switches_it_off(infer, bundle, phantom, tmp_path):
    ways = (), ("--runtime", "eager", "--output_dir", tmp_path / "eager")
    fast, plain = (infer(phantom["image"], *way)[1] for way in ways)
    for text in (fast, plain):
        (decision,) = said(text, " (input ")
        assert DECISION.fullmatch(decision), decision
        assert text.index("weights: ") < text.index(decision)
    assert "runtime eager on CPU" in plain
    assert "eager" not in fast


def test_evaluation_prints_it_too(monai_bundle, configs, phantom_overrides, weights, tmp_path):
    files = str([str(configs / name) for name in ("train.json", "evaluate.json")])
    process = monai_bundle(
        "run", "--config_file", files, *phantom_overrides, "--weights", weights, "--output_dir", tmp_path,
        "--runtime", "channels_last",
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    (decision,) = said(process.stderr, " (input ")
    assert decision.startswith("runtime channels_last on CPU, 1 thread (input 1x1x")


def test_a_mode_that_does_not_exist_is_named(try_to_infer, refused, phantom):
    refused(try_to_infer(phantom["image"], "--runtime", "fast"), "mode must be one of auto, eager, ", "got 'fast'")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_overlay_for_tensorrt_is_one_warning(monai_bundle, bundle, phantom, tmp_path):
    files = str([str(bundle.configs / name) for name in ("inference.json", "inference_trt.json")])
    process = monai_bundle(
        "run", "--config_file", files, "--input", phantom["image"], "--weights", bundle.weights,
        "--output_dir", tmp_path, "--device", "cpu", *bundle.network_overrides,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    assert {path.name for path in tmp_path.iterdir()} == bundle.results()
    (warning,) = said(process.stderr, "tensorrt")
    assert warning.endswith(" runs in place of tensorrt: tensorrt is for CUDA, the input is on CPU")
    assert len(said(process.stderr, " (input ")) == 1
