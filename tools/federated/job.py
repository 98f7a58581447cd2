# SPDX-License-Identifier: Apache-2.0
"""A job of NVFlare that trains a bundle on phantoms by federated averaging, with MONAI's client at every site."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from volseg.storage.files import write_json

ROUND_METRICS = Path(__file__).with_name("round_metrics.py")
METRICS_FILE = "round_metrics.json"


@dataclass(frozen=True)
class Recipe:
    """How long a bundle learns from phantoms at a site.

    Attributes:
        metric: key metric of an evaluation.
        epochs: of each round.
        options: overrides of ``train.json``.
    """

    metric: str
    epochs: int
    options: Mapping[str, Any] = field(default_factory=dict)


CASES = {"training": 4, "validation": 1, "test": 2}
RECIPES = {
    "pdvnet_lung": Recipe(
        "val_mean_dice", 6, {"phantom_shape": [40, 48, 32], "spatial_size": [32, 40, 24], "warmup_iterations": 1}
    ),
    "vnet_prostate": Recipe(
        "val_mean_dice", 6,
        {"phantom_shape": [48, 40, 16], "spacing_mm": [4.0, 3.0, 6.0], "spatial_size": [32, 48, 16],
         "learning_rate": 0.003},
    ),
    "resunet_mitoem": Recipe(
        "val_ap75", 2,
        {"phantom_shape": [12, 48, 64], "spatial_size": [8, 32, 48], "margin_pixels": 8, "epoch_iterations": 20,
         "warmup_iterations": 1},
    ),
}  # fmt: skip


def write_job(folder: Path, bundle: Path, scratch: Path, sites: int, rounds: int) -> None:
    """Write the folder of a job.

    Every site has phantoms of its own, which differ by their seed.

    Args:
        folder: of the job.
        bundle: folder of the bundle, at the same path at the server and all sites.
        scratch: folder for what the sites write.
        sites: how many clients, ``site-1``, ``site-2`` and so on, as NVFlare's simulator names them.
        rounds: of training; after each the server averages what the sites learnt.
    """
    recipe = RECIPES[bundle.name]
    names = [f"site-{number}" for number in range(1, sites + 1)]
    write_json(
        folder / "meta.json",
        {
            "name": bundle.name,
            "resource_spec": {},
            "min_clients": sites,
            "deploy_map": {"server": ["server"], **{name: [name] for name in names}},
        },
    )
    write_json(folder / "server" / "config" / "config_fed_server.json", _server(bundle, sites, rounds))
    custom = folder / "server" / "custom"
    custom.mkdir()
    shutil.copyfile(ROUND_METRICS, custom / ROUND_METRICS.name)
    for seed, name in enumerate(names):
        site = _site(bundle, scratch / name, seed, recipe)
        write_json(folder / name / "config" / "config_fed_client.json", site)


def _server(bundle: Path, sites: int, rounds: int) -> dict[str, Any]:
    common = "nvflare.app_common"
    return {
        "format_version": 2,
        "workflows": [
            _component(
                "training", f"{common}.workflows.scatter_and_gather.ScatterAndGather",
                min_clients=sites, num_rounds=rounds, persistor_id="weights", aggregator_id="average",
                shareable_generator_id="model", ignore_result_error=False,
            ),
            _component(
                "evaluation", f"{common}.workflows.global_model_eval.GlobalModelEval", model_locator_id="locator"
            ),
        ],
        "components": [
            _component("weights", "monai_nvflare.monai_bundle_persistor.MonaiBundlePersistor", bundle_root=str(bundle)),
            _component(
                "model", f"{common}.shareablegenerators.full_model_shareable_generator.FullModelShareableGenerator"
            ),
            _component(
                "average",
                f"{common}.aggregators.intime_accumulate_model_aggregator.InTimeAccumulateWeightedAggregator",
                expected_data_kind="WEIGHT_DIFF",
            ),
            _component(
                "locator", "nvflare.app_opt.pt.file_model_locator.PTFileModelLocator", pt_persistor_id="weights"
            ),
            _component(
                "metrics", "round_metrics.RoundMetrics",
                file_name=METRICS_FILE, key_metric=RECIPES[bundle.name].metric,
            ),
        ],
    }  # fmt: skip


def _site(bundle: Path, scratch: Path, seed: int, recipe: Recipe) -> dict[str, Any]:
    given = {
        **recipe.options, "phantom_cases": CASES, "phantom_seed": seed, "phantom_dir": str(scratch / "phantoms"),
        "output_dir": str(scratch / "output"), "ckpt_dir": str(scratch / "models"), "num_workers": 0,
        "val_interval": recipe.epochs,
    }  # fmt: skip
    client = _component(
        "client", "monai.fl.client.monai_algo.MonaiAlgo", bundle_root=str(bundle), local_epochs=recipe.epochs,
        train_kwargs=given, eval_kwargs={**given, "runtime": "eager"},
    )  # fmt: skip
    executor = _component(
        "executor", "monai_nvflare.client_algo_executor.ClientAlgoExecutor",
        client_algo_id="client", key_metric=recipe.metric,
    )  # fmt: skip
    return {
        "format_version": 2,
        "executors": [{"tasks": ["train", "validate", "submit_model"], "executor": executor}],
        "components": [client],
    }


def _component(identifier: str, path: str, **arguments: Any) -> dict[str, Any]:
    return {"id": identifier, "path": path, "args": arguments}
