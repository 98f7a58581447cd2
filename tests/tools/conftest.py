# SPDX-License-Identifier: Apache-2.0
"""A tiny complete bundle that passes every rule, and ways to break it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from monai.bundle.utils import merge_kv

NAME = "tiny_segmentation"

METADATA = {
    "schema": "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20240725.json",
    "version": "0.1.0",
    "changelog": {"0.1.0": "First version."},
    "monai_version": "1.6.1",
    "pytorch_version": "2.13.0",
    "numpy_version": "2.4.6",
    "required_packages_version": {"nibabel": "5.4.2"},
    "supported_apps": {"monai-label": ">=0.8.5"},
    "name": "Tiny segmentation",
    "task": "Tests of the check",
    "description": "One convolution.",
    "authors": "The authors",
    "copyright": "The authors",
    "eval_metrics": {"mean_dice": 0.5, "per_lobe": {"upper": 0.25}},
    "references": ["A paper."],
    "network_data_format": {
        "inputs": {
            "image": {
                "type": "image",
                "format": "hounsfield",
                "num_channels": 1,
                "spatial_shape": ["8*n", "*", 16],
                "dtype": "float32",
                "value_range": [-1000, 400],
                "channel_def": {"0": "image"},
            }
        },
        "outputs": {
            "pred": {
                "type": "image",
                "format": "segmentation",
                "num_channels": 2,
                "spatial_shape": ["8*n", "*", 16],
                "dtype": "float32",
                "value_range": [],
                "is_patch_data": False,
                "channel_def": {"0": "background", "1": "lung"},
            }
        },
    },
}

OWN_NETWORK = {"_target_": f"{NAME}.network.TinyNet", "channels": 2}
COMMON = {
    "imports": ["$import os", f"$import {NAME}"],
    "bundle_root": f"$os.path.dirname(os.path.dirname({NAME}.__file__))",
    "device": "$torch.device('cuda' if torch.cuda.is_available() else 'cpu')",
    "dataset_dir": "$os.path.join(@bundle_root, 'data')",
    "spacing_mm": [1.0, 1.0, 2.0],
    "network_def": OWN_NETWORK,
    "network": "$@network_def.to(@device)",
}

TRAIN = {
    "_desc_": "Trains one convolution on nothing, @nowhere and $for the tests only.",
    **COMMON,
    "val_interval": 1,
    "image_transforms": [
        {"_target_": "LoadImaged", "keys": ["image", "label"]},
        {"_target_": "Spacingd", "keys": ["image", "label"], "pixdim": "@spacing_mm", "mode": ["bilinear", "nearest"]},
        {"_target_": "ScaleIntensityd", "keys": "image"},
    ],
    "label_transforms": [{"_target_": "AsDiscreted", "keys": "label", "to_onehot": 2}],
    "random_transforms": [{"_target_": "RandFlipd", "keys": ["image", "label"], "prob": 0.5}],
    "train": {
        "preprocessing": {
            "_target_": "Compose",
            "transforms": "$@image_transforms + @label_transforms + @random_transforms",
        },
        "dataset": {"_target_": "monai.data.Dataset", "data": [], "transform": "@train#preprocessing"},
        "dataloader": {"_target_": "torch.utils.data.DataLoader", "dataset": "@train#dataset"},
        "inferer": {"_target_": "SimpleInferer"},
        "handlers": [
            {"_target_": "ValidationHandler", "validator": "@validate#evaluator", "interval": "@val_interval"},
        ],
        "trainer": {"_target_": "SupervisedTrainer", "max_epochs": 1, "train_handlers": "@train#handlers"},
    },
    "validate": {
        "preprocessing": {"_target_": "Compose", "transforms": ["@image_transforms", "@label_transforms"]},
        "dataset": {"_target_": "monai.data.Dataset", "data": [], "transform": "@validate#preprocessing"},
        "dataloader": {"_target_": "torch.utils.data.DataLoader", "dataset": "@validate#dataset"},
        "inferer": "@train#inferer",
        "handlers": [],
        "evaluator": {"_target_": "SupervisedEvaluator", "val_handlers": "@validate#handlers"},
    },
    "run": ["$@train#trainer.run()"],
}

EVALUATE = {
    "_desc_": "Evaluates what train.json trained.",
    "+validate#handlers": [{"_target_": "CheckpointLoader", "load_dict": {"model": "@network"}}],
    "run": ["$@validate#evaluator.run()"],
}

INFERENCE = {
    "_desc_": "Segments a volume.",
    **COMMON,
    "preprocessing": {
        "_target_": "Compose",
        "transforms": [
            {"_target_": "LoadImaged", "keys": "image"},
            {"_target_": "Spacingd", "keys": "image", "pixdim": [1.0, 1.0, 2.0], "mode": "bilinear"},
            {"_target_": "ScaleIntensityd", "keys": "image"},
        ],
    },
    "dataset": {"_target_": "monai.data.Dataset", "data": [], "transform": "@preprocessing"},
    "inferer": {"_target_": "SimpleInferer"},
    "evaluator": {"_target_": "SupervisedEvaluator", "network": "@network"},
    "run": ["$@evaluator.run()"],
}

README = """# Tiny segmentation
## Description
## Intended use
## Data
```bash
# Not a heading.
python -m monai.bundle run --config_file configs/train.json
python -m monai.bundle run \\
    --config_file "['configs/train.json','configs/evaluate.json']"
```
## Performance
See `python -m monai.bundle run --config_file bundles/tiny_segmentation/configs/inference.json`.
## Limitations
## Paper and implementation
## Citation
## References
## License
"""

NETWORK = """import torch


class TinyNet(torch.nn.Conv3d):
    def __init__(self, channels: int) -> None:
        super().__init__(1, channels, 1)


SIZE = 3
"""


class TinyBundle:
    """The bundle's folder, with edits as one-liners."""

    title = f"bundles/{NAME}"

    def __init__(self, checkout: Path) -> None:
        self.root = checkout / "bundles" / NAME
        for file, content in (
            ("metadata", METADATA),
            ("train", TRAIN),
            ("evaluate", EVALUATE),
            ("inference", INFERENCE),
        ):
            self.write_json(f"configs/{file}.json", content)
        self.write_json("docs/results/test_set.json", {"eval_metrics": METADATA["eval_metrics"], "seed": 0})
        self.write("docs/README.md", README)
        self.write(f"{NAME}/__init__.py", "")
        self.write(f"{NAME}/network.py", NETWORK)
        for file in ("LICENSE", "docs/data_license.txt", "configs/logging.conf"):
            self.write(file, "Text.")
        (self.root / "models").mkdir()
        torch.save({"weight": torch.zeros(2, 1, 1, 1, 1)}, self.root / "models" / "model.pt")

    def write(self, path: str, text: str) -> None:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")

    def write_json(self, path: str, content: object) -> None:
        self.write(path, json.dumps(content))

    def edit(self, path: str, **changes: object) -> None:
        """Set ids (``a__b`` for ``a#b``) of a config; the value ``...`` removes the last key."""
        from monai.bundle import ConfigParser

        content = json.loads((self.root / path).read_text(encoding="utf-8"))
        parser = ConfigParser(config=content, globals=False)
        for key, value in changes.items():
            parent, _, last = key.replace("__", "::").rpartition("::")
            if value is ...:
                del parser[parent][last]
            else:
                merge_kv(parser, key.replace("__", "::"), value)
        self.write_json(path, parser.config)

    def findings(self) -> list[tuple[str, str]]:
        """The name of the rule and the line of every finding, without the bundle's folder."""
        from tools.check.bundle import Bundle
        from tools.check.command import findings

        bundle = Bundle.read(self.root)
        prefix = f"{self.title}/"
        lines = [(rule, finding.line(bundle.title)) for rule, finding in findings(bundle)]
        assert all(line.startswith(prefix) and "\n" not in line for _, line in lines)
        return [(rule, line.removeprefix(prefix)) for rule, line in lines]


@pytest.fixture
def tiny_bundle(tmp_path: Path) -> TinyBundle:
    """A complete bundle in a checkout of its own."""
    return TinyBundle(tmp_path)


@pytest.fixture
def registry(tmp_path: Path) -> Path:
    """A folder to publish to, not made yet."""
    return tmp_path / "registry"
