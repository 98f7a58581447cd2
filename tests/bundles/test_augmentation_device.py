# SPDX-License-Identifier: Apache-2.0
"""The augmentation of the bundles stays on the device of the volumes, and gives there what it gives on the CPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from monai.bundle import ConfigParser
from monai.data import set_track_meta
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map

from volseg.transforms.augment_batch import AugmentBatch

aten = torch.ops.aten
# of the devices that need no library, that for which Python indexes tensors
DEVICE = torch.device("meta")
# a GPU takes positions that lie on the host
INDEXING = (aten.index.Tensor, aten.index_put_.default)
COPYING = (aten._to_copy.default, aten.copy_.default)
SIZES = {"vnet_prostate": (24, 32, 16), "resunet_mitoem": (10, 48, 56)}
CERTAIN = {
    "vnet_prostate": {"deformation_probability": 1.0, "mirror_probability": 1.0, "deformation_voxels": [3, 4, 2]},
    "resunet_mitoem": {
        "augmentation": 1.0,
        "spatial_size": [8, 32, 40],
        "misalignment_pixels": 3,
        "missing_parts_pixels": 2,
        **{f"{name}_probability": 1.0 for name in (
            "cut_noise", "cut_blur", "motion_blur", "misalignment", "missing_section", "missing_parts", "greyscale",
            "elastic", "rescale", "rotation", "flip",
        )},
    },
}  # fmt: skip
TRANSFORMS = {"vnet_prostate": "train#random_transforms", "resunet_mitoem": "train#augmentation_transforms"}


class OnDevice(torch.Tensor):
    """A tensor that says it lies on another device, as far as Python can tell; its values are on the host."""

    values: torch.Tensor

    @staticmethod
    def __new__(cls, values: torch.Tensor) -> OnDevice:
        tensor = torch.Tensor._make_wrapper_subclass(
            cls, values.shape, strides=values.stride(), storage_offset=values.storage_offset(),
            dtype=values.dtype, device=DEVICE,
        )  # fmt: skip
        tensor.values = values
        return tensor

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"{func} outside of the device's mode")


class PretendDevice(TorchDispatchMode):
    """Makes tensors on the device, and refuses what a GPU refuses: to mix devices. Volumes may not leave it either."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        here = [tensor for tensor in tensors if isinstance(tensor, OnDevice)]
        device = kwargs.get("device")
        if here and func not in (*INDEXING, *COPYING):
            on_the_host = [tensor for tensor in tensors if not isinstance(tensor, OnDevice) and tensor.ndim > 0]
            assert not on_the_host, f"{func} mixes devices"
        if here and device is not None:
            assert torch.device(device).type == DEVICE.type, f"{func} copies {tuple(here[0].shape)} to the host"
        if func is aten.copy_.default and isinstance(args[1], OnDevice):
            assert isinstance(args[0], OnDevice), f"{func} copies {tuple(args[1].shape)} to the host"
        goes_here = bool(here) if device is None else torch.device(device).type == DEVICE.type
        if device is not None and goes_here:
            kwargs["device"] = torch.device("cpu")
        known = {id(tensor.values): tensor for tensor in here}
        inside = tree_map(lambda leaf: leaf.values if isinstance(leaf, OnDevice) else leaf, (args, kwargs))
        result = func(*inside[0], **inside[1])

        def wrap(leaf: Any) -> Any:
            if not isinstance(leaf, torch.Tensor) or not goes_here:
                return leaf
            return known[id(leaf)] if id(leaf) in known else OnDevice(leaf)  # in place: what it was given

        return tree_map(wrap, result)


class UploadedNumbers(TorchFunctionMode):
    """Makes ``torch.tensor([1, 2], device=...)`` on the device, where PyTorch would let no other mode see it."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.tensor and torch.device(kwargs.get("device") or "cpu") == DEVICE:
            del kwargs["device"]
            return func(*args, **kwargs).to(DEVICE)
        return func(*args, **kwargs)


def values_of(tensor: torch.Tensor) -> torch.Tensor:
    assert isinstance(tensor, OnDevice), "left the device"
    with _disable_current_modes():
        return tensor.values


@pytest.fixture
def pretend_device():
    """The device, while it pretends. MONAI's transforms make no tensors with meta data then, which cannot pretend."""
    with PretendDevice(), UploadedNumbers():
        set_track_meta(False)
        yield
        set_track_meta(True)


@pytest.fixture(scope="module", params=TRANSFORMS)
def bundle_name(request) -> str:
    return request.param


@pytest.fixture
def parser(root, bundle_name, phantom_overrides, tmp_path) -> ConfigParser:
    """train.json of a bundle on tiny phantoms, with every augmentation certain."""
    parser = ConfigParser()
    parser.read_config(str(root / "bundles" / bundle_name / "configs" / "train.json"))
    names, values = phantom_overrides[::2], phantom_overrides[1::2]
    given = {name.removeprefix("--"): value for name, value in zip(names, values, strict=True)}
    for name, value in {**given, "output_dir": str(tmp_path), **CERTAIN[bundle_name]}.items():
        parser[name] = f"${value}" if isinstance(value, str) and value[0] in "[{" else value
    return parser


def a_batch(size: tuple[int, ...]) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    label = torch.zeros(2, 1, *size, dtype=torch.int32)
    label[:, :, 2:, 5:20, 3:14] = 1
    label[:, :, :6, 12:18, 10:15] = 3
    return {"image": torch.rand(2, 1, *size, generator=generator), "label": label}


@pytest.fixture
def transforms(bundle_name, parser) -> list:
    return parser.get_parsed_content(TRANSFORMS[bundle_name])


@pytest.fixture
def batch(bundle_name) -> dict[str, torch.Tensor]:
    return a_batch(SIZES[bundle_name])


@pytest.fixture
def expected(transforms, batch) -> tuple[torch.Tensor, torch.Tensor]:
    """What comes out on the CPU."""
    return AugmentBatch(transforms).set_random_state(3)(batch, "cpu")


def test_volumes_stay_on_the_device_and_come_out_as_on_the_cpu(batch, transforms, expected, pretend_device):
    results = AugmentBatch(transforms).set_random_state(3)(batch, DEVICE)
    for result, same in zip(results, expected, strict=True):
        torch.testing.assert_close(values_of(result), same)
    assert not torch.equal(expected[0], batch["image"][:, :, : expected[0].shape[2]])


def test_the_pretended_device_refuses_what_a_gpu_refuses(pretend_device):
    here = torch.ones(3, device=DEVICE)
    assert here.device == DEVICE
    assert values_of(here + here.clone().add_(1)).tolist() == [3, 3, 3]
    assert values_of(torch.arange(3).to(DEVICE)).tolist() == [0, 1, 2]
    assert bool(here.min() == 1)  # a number may be looked at
    with pytest.raises(AssertionError, match="mixes devices"):
        here + torch.ones(3)
    with pytest.raises(AssertionError, match="to the host"):
        here.cpu()
    with pytest.raises((TypeError, RuntimeError), match=r"numpy|meta"):
        here.numpy()


@pytest.mark.parametrize("on_device", [True, False])
def test_transforms_are_the_batchs_or_the_data_sets(bundle_name, parser, on_device):
    parser["augment_on_device"] = on_device
    random = parser.get_parsed_content(TRANSFORMS[bundle_name])
    dataset = parser.get_parsed_content("train#dataloader").dataset
    batch = parser.get_parsed_content("train#trainer").prepare_batch
    of_dataset = dataset.transform.transforms
    assert [transform in of_dataset for transform in random] == [not on_device] * len(random)
    assert list(batch.transform.transforms) == (random if on_device else [])


def test_on_a_cpu_the_data_set_augments(parser):
    assert parser.get_parsed_content("augment_on_device") is False
    parser["device"] = "cuda:1"
    parser.parse(True)
    assert parser.get_parsed_content("augment_on_device") is True


def test_training_with_augmentation_of_batches(monai_bundle, configs, train_overrides, tmp_path):
    process = monai_bundle(
        "run", "--config_file", configs / "train.json", *train_overrides, "--augment_on_device", "True",
        "--output_dir", tmp_path / "out", "--ckpt_dir", tmp_path / "models",
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    assert (tmp_path / "models" / "model.pt").is_file()
