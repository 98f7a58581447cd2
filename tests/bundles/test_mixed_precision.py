# SPDX-License-Identifier: Apache-2.0
"""Every bundle trains in mixed precision."""

from __future__ import annotations

import math

import pytest
import torch
from monai.bundle import ConfigParser
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


@pytest.fixture(scope="module", params=["pdvnet_lung", "vnet_prostate", "resunet_mitoem"])
def bundle_name(request) -> str:
    return request.param


def test_losses_are_finite(monai_bundle, configs, train_overrides, tmp_path):
    files = str([str(configs / name) for name in ("train.json", "train_amp.json")])
    process = monai_bundle(
        "run", "--config_file", files, *train_overrides, "--max_epochs", 2,
        "--output_dir", tmp_path / "out", "--ckpt_dir", tmp_path / "models",
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    assert (tmp_path / "models" / "model.pt").is_file()
    losses = []
    for path in (tmp_path / "out" / "tensorboard").iterdir():
        events = EventAccumulator(str(path)).Reload()
        if "train_loss" in events.Tags()["scalars"]:
            losses += [event.value for event in events.Scalars("train_loss")]
    assert len(losses) >= 2
    assert all(math.isfinite(loss) for loss in losses)


def test_the_overlay_turns_it_on_for_the_papers_training_too(configs, tmp_path):
    parser = ConfigParser()
    parser.read_config([str(configs / "train.json"), str(configs / "train_amp.json")])
    parser["dataset_dir"] = str(tmp_path)
    assert parser.get_parsed_content("train#inferer").devices >= {"cuda"}


def test_the_networks_weights_lie_channels_last(configs):
    parser = ConfigParser()
    parser.read_config([str(configs / "train.json"), str(configs / "train_amp.json")])
    parser["device"] = "cpu"
    kernels = [p for p in parser.get_parsed_content("network").parameters() if p.ndim == 5 and p.shape[1] > 1]
    assert kernels
    assert all(kernel.is_contiguous(memory_format=torch.channels_last_3d) for kernel in kernels)
