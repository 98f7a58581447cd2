# SPDX-License-Identifier: Apache-2.0
"""The job that NVFlare's simulator runs, against the code of MONAI; the results of its last run; mistakes."""

from __future__ import annotations

import json
from importlib.metadata import version
from inspect import signature

import pytest
from monai.bundle import ConfigParser
from monai.fl.client.monai_algo import MonaiAlgo

from tools import REPOSITORY
from tools.federated.command import RESULTS, federated
from tools.federated.environment import NVFLARE
from tools.federated.job import RECIPES, write_job
from volseg.errors import UserError


@pytest.fixture(params=RECIPES)
def job(request, tmp_path):
    bundle = REPOSITORY / "bundles" / request.param
    write_job(tmp_path / "job", bundle, tmp_path / "sites", sites=2, rounds=3)
    return tmp_path / "job", bundle


def test_every_site_has_a_client_of_monai_with_phantoms_of_its_own(job):
    folder, bundle = job
    meta = json.loads((folder / "meta.json").read_text())
    assert meta["deploy_map"] == {"server": ["server"], "site-1": ["site-1"], "site-2": ["site-2"]}
    seeds = set()
    for site in ("site-1", "site-2"):
        config = json.loads((folder / site / "config" / "config_fed_client.json").read_text())
        [client] = config["components"]
        assert client["path"] == f"{MonaiAlgo.__module__}.{MonaiAlgo.__name__}"
        assert client["args"].keys() <= signature(MonaiAlgo).parameters.keys()
        parser = ConfigParser()
        parser.read_config([str(bundle / "configs" / f"{name}.json") for name in ("train", "evaluate")])
        for given in (client["args"]["train_kwargs"], client["args"]["eval_kwargs"]):
            assert given.keys() <= parser.config.keys()
            assert all(site in given[key] for key in ("phantom_dir", "output_dir", "ckpt_dir"))
        seeds.add(given["phantom_seed"])
        [executor] = config["executors"]
        assert executor["executor"]["args"]["client_algo_id"] == client["id"]
    assert len(seeds) == 2


def test_server_averages_over_rounds_and_stops_at_an_error(job):
    folder, bundle = job
    config = json.loads((folder / "server" / "config" / "config_fed_server.json").read_text())
    training, evaluation = config["workflows"]
    components = {component["id"]: component["args"] for component in config["components"]}
    assert training["args"]["num_rounds"] == 3
    assert training["args"]["min_clients"] == 2
    assert training["args"]["ignore_result_error"] is False
    named = [
        value for args in (training["args"], evaluation["args"]) for key, value in args.items() if key[-3:] == "_id"
    ]
    assert set(named) <= components.keys()
    assert components["weights"] == {"bundle_root": str(bundle)}
    assert (folder / "server" / "custom" / "round_metrics.py").is_file()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bundle": "unet"}, "bundle: no bundle named unet; choose from pdvnet_lung, "),
        ({"rounds": 0}, "rounds must be an integer >= 1, got 0"),
        ({"sites": 1.0}, r"sites must be an integer >= 2, got 1\.0"),
    ],
)
def test_mistakes_are_named_before_anything_is_built(tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        federated(**{"bundle": "vnet_prostate", "environment": str(tmp_path / "none"), **options})
    assert not (tmp_path / "none").exists()


def test_workspace_with_files_is_refused(tmp_path):
    (tmp_path / "thesis.txt").write_text("text")
    with pytest.raises(UserError, match="is not an empty folder; name another"):
        federated("vnet_prostate", workspace=str(tmp_path))


def test_constraints_pin_every_package():
    lines = [line for line in NVFLARE.constraints.read_text().splitlines() if not line.startswith("#")]
    pins = dict(line.split("==") for line in lines)
    assert {"monai", "monai-nvflare", "nvflare", "torch", "numpy", "zarr"} <= pins.keys()
    assert pins["monai"] == version("monai")
    assert not any("+" in pin for pin in pins.values())


@pytest.mark.parametrize("bundle", [path.stem for path in (REPOSITORY / RESULTS).glob("*.json")])
def test_results_show_averages_that_learnt(bundle):
    result = json.loads((REPOSITORY / RESULTS / f"{bundle}.json").read_text())
    assert (result["rounds"], result["sites"], result["bundle"]) == (2, 2, bundle)
    assert result["metric"] == RECIPES[bundle].metric
    assert result["options"] == RECIPES[bundle].options
    assert result["packages"]["monai"] == version("monai")
    scores = result["scores"]
    assert sorted(scores) == ["site-1", "site-2"]
    assert all(len(found) == 3 for found in scores.values())
    assert sum(found[-1] for found in scores.values()) > sum(found[0] for found in scores.values())
