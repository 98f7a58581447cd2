# SPDX-License-Identifier: Apache-2.0
"""How the unit tests of MONAI's model zoo run bundles: one process, workflows as objects, cases from outside."""

from __future__ import annotations

import json

import pytest

SCRIPT = """
import json, sys
from monai.bundle import ConfigWorkflow
folder, training, inference = sys.argv[1], *map(json.loads, sys.argv[2:])
checks = []
for kind, names, overrides in (
    ("train", ["train"], training), ("eval", ["train", "evaluate"], training), ("infer", ["inference"], inference),
):
    workflow = ConfigWorkflow(
        workflow_type=kind,
        config_file=[f"{folder}/{name}.json" for name in names],
        meta_file=f"{folder}/metadata.json",
        logging_file=f"{folder}/logging.conf",
        **overrides,
    )
    workflow.initialize()
    if kind != "eval":  # an overlay changes what it does not need
        checks += workflow.check_properties() or []
    workflow.run()
    workflow.finalize()
print(json.dumps(checks))
"""


@pytest.fixture(scope="module", params=["pdvnet_lung", "vnet_prostate", "resunet_mitoem"])
def bundle_name(request) -> str:
    return request.param


def test_train_evaluate_and_infer_on_cases_from_outside(runner, bundle, tmp_path):
    pairs = json.loads((bundle.phantom_dir / "dataset.json").read_text())["training"]
    cases = [{kind: str(bundle.phantom_dir / path) for kind, path in pair.items()} for pair in pairs]
    common = {"bundle_root": str(bundle.dir), "device": "cpu"}
    small = {f"network_def#{key}": value for key, value in bundle.small.arguments.items()}
    training = {
        **common, **small, **{k: v for k, v in bundle.small.record.items() if isinstance(v, list)},
        **bundle.small.training, "max_epochs": 1, "val_interval": 1, "ckpt_dir": str(tmp_path / "models"),
        "output_dir": str(tmp_path / "out"), "train#dataset#data": cases[1:], "validate#dataset#data": cases[:1],
        "train#dataloader#num_workers": 0, "validate#dataloader#num_workers": 0,
    }  # fmt: skip
    inference = {
        **common, **small, "dataset#data": [{"image": cases[0]["image"]}],
        "weights": str(tmp_path / "models" / "model.pt"), "output_dir": str(tmp_path / "segmented"),
    }  # fmt: skip
    process = runner.python(SCRIPT, bundle.configs, json.dumps(training), json.dumps(inference))
    assert process.returncode == 0, process.stderr
    assert json.loads(process.stdout.splitlines()[-1]) == []
    assert {path.name for path in (tmp_path / "models").iterdir()} == {"model.pt", "model.json"}
    scores = (tmp_path / "out" / "per_case.csv").read_text()
    assert {line.split(",")[0] for line in scores.splitlines()[1:]} == {"training_0"}
    assert {path.name for path in (tmp_path / "segmented").iterdir()} == bundle.results("training_0")
