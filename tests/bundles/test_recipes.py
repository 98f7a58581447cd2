# SPDX-License-Identifier: Apache-2.0
"""The paper's recipe stands straight down in train.json; what phantoms change stands beside it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from monai.bundle import ConfigParser
from monai.data import Dataset

BUNDLES = Path(__file__).parents[2] / "bundles"
NAMES = ("pdvnet_lung", "vnet_prostate", "resunet_mitoem")
# on phantoms the decay follows from the length of the training; mirror is recorded where images were mirrored
COMPUTED = {"decay_iterations", "mirror"}


def parser_of(name: str, *overlays: str, **overrides: object) -> ConfigParser:
    parser = ConfigParser()
    parser.read_config([str(BUNDLES / name / "configs" / f"{file}.json") for file in ("train", *overlays)])
    parser.update(overrides)
    return parser


def values(block: dict) -> dict:
    return {key: value for key, value in block.items() if not key.startswith("_desc_") and key != "trained_on"}


@pytest.mark.parametrize("name", NAMES)
def test_one_expression_asks_for_a_data_set(name):
    path = BUNDLES / name / "configs" / "train.json"
    text = path.read_text(encoding="utf-8")
    assert text.count("if @dataset_dir") == 1
    assert len(text.splitlines()) < 300


@pytest.mark.parametrize("name", NAMES)
def test_with_a_data_set_the_paper_decides(name):
    parser = parser_of(name, dataset_dir="somewhere")
    paper, recipe = values(parser["paper"]), parser.get_parsed_content("recipe")
    assert values(recipe) == paper
    # voxel_size_nm is what the files of the data set say
    chosen = paper.keys() - COMPUTED - {"voxel_size_nm"}
    assert all(parser.get_parsed_content(key) == paper[key] for key in chosen)
    assert recipe["trained_on"] == "somewhere"


@pytest.mark.parametrize("name", NAMES)
def test_without_one_the_phantom_profile_changes_what_it_names(name):
    parser = parser_of(name)
    paper, phantom = values(parser["paper"]), values(parser["phantom"])
    assert phantom.keys() <= paper.keys()
    recipe = parser.get_parsed_content("recipe")
    assert values(recipe) == {**paper, **phantom}
    assert all(parser.get_parsed_content(key) == recipe[key] for key in paper.keys() - COMPUTED)
    assert recipe["trained_on"] == "phantom"


@pytest.mark.parametrize("on_device", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_a_dataset_from_outside_is_the_one_that_counts(name, on_device):
    parser = parser_of(name, device="cpu", augment_on_device=on_device)
    given = Dataset([{"image": torch.rand(1, 2, 3, 4)}])
    parser["train#dataset"] = parser["validate#dataset"] = given
    loader = parser.get_parsed_content("train#trainer").data_loader
    used = loader.dataset
    assert given in (used, used.data) and len(used) == 1
    if name == "vnet_prostate":
        assert parser.get_parsed_content("train#random_transforms")[0].references is given


@pytest.mark.parametrize("device", [None, "cpu", torch.device("cpu")])
@pytest.mark.parametrize("name", NAMES)
def test_device_is_one_of_pytorch_or_its_name(name, device):
    parser = parser_of(name, **({} if device is None else {"device": device}))
    given = parser.get_parsed_content("device")
    assert isinstance(given, torch.device) or device == "cpu"
    weights = next(parser.get_parsed_content("network").parameters())
    assert weights.device.type == torch.device(given).type


@pytest.mark.parametrize("name", NAMES)
def test_an_override_of_an_id_wins(name):
    parser = parser_of(name, max_epochs=3, dataset_dir="somewhere")
    assert parser.get_parsed_content("train#trainer#max_epochs") == 3


def test_the_second_stage_of_the_multi_scale_training():
    keys = ("spatial_size", "margin_pixels", "max_epochs", "val_interval", "learning_rate", "batch_size")
    parsers = [parser_of("resunet_mitoem", "train_second_stage", dataset_dir=given) for given in ("somewhere", "")]
    assert [[parser.get_parsed_content(key) for key in keys] for parser in parsers] == [
        [[26, 320, 320], 144, 50, 2, 1e-4, 2],
        [[6, 80, 80], 16, 6, 1, 3e-4, 4],
    ]
