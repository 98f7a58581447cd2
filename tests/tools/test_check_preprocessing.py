# SPDX-License-Identifier: Apache-2.0
"""The normalisation of preprocessing lists, and the rule that compares them."""

from __future__ import annotations

import pytest

from tools.check.preprocessing import normalise

TRAIN, INFER = "configs/train.json", "configs/inference.json"
LOAD = {"_target_": "LoadImaged", "keys": ["image"]}
SCALE = {"_target_": "ScaleIntensityd", "keys": ["image"]}


def test_a_list_of_image_transforms_stays():
    assert normalise([LOAD, SCALE], {}) == [LOAD, SCALE]


@pytest.mark.parametrize(
    "item",
    [
        {"_target_": "monai.transforms.LoadImaged", "keys": ["label", "image"]},
        {"_target_": "LoadImaged", "keys": "image", "allow_missing_keys": True},
        {"_target_": "LoadImaged", "keys": "@key", "_desc_": "Why.", "_disabled_": False},
        "@load",
        "$@load",
        {"_target_": "Compose", "transforms": ["@load"]},
        ["@list"],
        "$@list + @random",
        {"_target_": "Compose", "transforms": "$@random + @list + @label_only"},
        "@compose",
        "$[*@compose.transforms, *@random, @flip]",
        "$@compose.transforms + @label_only",
    ],
)
def test_spellings_of_one_transform_are_equal(item):
    config = {
        "key": "image",
        "load": LOAD,
        "list": ["@load"],
        "random": [{"_target_": "volseg.transforms.RandWarpd", "keys": "image"}, {"_target_": "OneOf"}],
        "label_only": [
            {"_target_": "AsDiscreted", "keys": ["label"]},
            {"_target_": "Spacingd", "keys": "image", "_disabled_": True},
        ],
        "compose": {"_target_": "Compose", "transforms": "@list"},
        "flip": {"_target_": "RandFlipd", "keys": "image"},
    }
    assert normalise(item, config) == [LOAD]


def test_arguments_per_key_are_reduced_to_those_of_the_image():
    both = {"_target_": "Spacingd", "keys": ["label", "image"], "mode": ["nearest", "bilinear"], "pixdim": [1, 2]}
    alone = {"_target_": "Spacingd", "keys": "image", "mode": "bilinear", "pixdim": [1, 2]}
    assert normalise([both], {}) == normalise([alone], {})


def test_arguments_are_compared_by_the_values_they_refer_to():
    config = {"spacing_mm": [1, 2, 3], "axes": "@more#axes", "more": {"axes": [0, 1]}}
    item = {"_target_": "Xd", "keys": "image", "pixdim": "@spacing_mm", "axes": "@axes", "n": "$len(@spacing_mm)"}
    [simple] = normalise([item], config)
    assert simple == {"_target_": "Xd", "keys": ["image"], "pixdim": [1, 2, 3], "axes": [0, 1], "n": "$len([1, 2, 3])"}


def test_what_cannot_be_read_is_equal_only_to_itself():
    one, other = normalise("$build(@a)", {"a": 1}), normalise("$build(@b)", {"b": 1})
    assert one == normalise("$build(@a)", {})
    assert one != other
    assert normalise("@loop", {"loop": ["@loop"]}) == [{"_target_": "@loop"}]


def test_arguments_of_the_function_stay_untouched():
    item = {"_target_": "Spacingd", "keys": ["image", "label"], "mode": ["bilinear", "nearest"]}
    normalise([item], {})
    assert item == {"_target_": "Spacingd", "keys": ["image", "label"], "mode": ["bilinear", "nearest"]}


def test_inference_that_differs_is_one_finding(tiny_bundle):
    tiny_bundle.edit(INFER, preprocessing__transforms__1__pixdim=[1.0, 1.0, 1.0])
    advice = "Give the image the same deterministic transforms in both files."
    assert tiny_bundle.findings() == [
        (
            "preprocessing",
            f"{INFER}: preprocessing differs from train::preprocessing of {TRAIN} at the image's transform 2; "
            "found: Spacingd(mode=bilinear, pixdim=[1.0, 1.0, 1.0]) instead of Spacingd(mode=bilinear, "
            f"pixdim=[1.0, 1.0, 2.0]). {advice}",
        )
    ]


def test_an_inference_overlay_is_compared_with_the_training_overlay_of_its_suffix(tiny_bundle):
    overlay = {"_desc_": "Another recipe.", "spacing_mm": [2.0, 2.0, 2.0]}
    tiny_bundle.write_json("configs/train_coarse.json", overlay)
    assert tiny_bundle.findings() == []
    tiny_bundle.write_json("configs/inference_coarse.json", {**overlay, "preprocessing#transforms": [LOAD]})
    [(rule, line)] = tiny_bundle.findings()
    assert rule == "preprocessing"
    assert "preprocessing differs from train::preprocessing of configs/train_coarse.json" in line


def test_the_container_of_an_image_does_not_matter():
    item = {"_target_": "Orientationd", "keys": "image", "axcodes": "RAS"}
    assert normalise([item, {"_target_": "EnsureTyped", "keys": "image"}], {}) == normalise([item], {})


def test_a_crop_read_at_random_equals_the_volume_read_whole():
    whole = {"_target_": "volseg.transforms.load_em_volume.LoadImageChunkedVolumed", "keys": ["image", "label"]}
    crop = {"_target_": "volseg.transforms.load_em_crop.RandLoadImageCropd", "keys": ["image", "label"]}
    smaller = {"_target_": "CenterSpatialCropd", "keys": ["image", "label"], "roi_size": [8, 16, 32]}
    assert normalise([crop, SCALE, smaller], {}) == normalise([whole, SCALE], {}) == [SCALE]
    assert normalise([whole, SCALE, smaller], {}) != normalise([whole, SCALE], {})


def test_a_value_recorded_beside_the_weights_equals_the_one_training_records(tiny_bundle):
    lists = [
        {"_target_": "LoadImaged", "keys": "image"},
        {"_target_": "Resized", "keys": "image", "spatial_size": "@size"},
    ]
    tiny_bundle.edit(TRAIN, image_transforms=lists, size=[8, 16, 32])
    tiny_bundle.edit(INFER, preprocessing__transforms=lists, size="$@recorded['size']")
    assert [line for rule, line in tiny_bundle.findings() if rule == "preprocessing"] == []
    tiny_bundle.edit(INFER, size=[8, 16, 16])
    assert [rule for rule, _ in tiny_bundle.findings() if rule == "preprocessing"] == ["preprocessing"]
