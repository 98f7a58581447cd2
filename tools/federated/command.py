# SPDX-License-Identifier: Apache-2.0
"""``python -m tools federated``: federated averaging of a bundle by NVFlare's simulator, on phantoms."""

from __future__ import annotations

import json
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from tools import REPOSITORY
from tools.federated.environment import NVFLARE
from tools.federated.job import METRICS_FILE, RECIPES, write_job
from volseg.errors import UserError
from volseg.storage.files import write_json

ENVIRONMENT = ".venv-federated"
RESULTS = "docs/federated"
VERSIONS = ("monai", "monai-nvflare", "nvflare", "torch")


def federated(
    bundle: str, rounds: int = 2, sites: int = 2, environment: str = "", output: str = "", workspace: str = ""
) -> None:
    """Train a bundle at several sites with NVFlare's simulator and write how its weights score after every round.

    The first start builds an environment. Every site has phantoms of its own; the first weights are random.

    Args:
        bundle: name of a folder under ``bundles``.
        rounds: after each the server averages what the sites learnt.
        sites: how many clients, each a process.
        environment: folder of the environment; .venv-federated of the checkout by default.
        output: folder of ``NAME.json``; docs/federated of the checkout by default.
        workspace: empty folder in which NVFlare works and that stays; a temporary one by default.

    Raises:
        UserError: no such bundle, a number below its minimum, a workspace with something in it, a run that failed,
            what building the environment raises.
    """
    if bundle not in RECIPES:
        raise UserError(f"bundle: no bundle named {bundle}; choose from {', '.join(RECIPES)}")
    for name, number, minimum in (("rounds", rounds, 1), ("sites", sites, 2)):
        if type(number) is not int or number < minimum:
            raise UserError(f"{name} must be an integer >= {minimum}, got {number}")
    folder = Path.cwd() / Path(workspace).expanduser() if workspace else None
    if folder and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"workspace: {folder} is not an empty folder; name another")
    python = NVFLARE.ensure(Path.cwd() / Path(environment or REPOSITORY / ENVIRONMENT).expanduser())
    with tempfile.TemporaryDirectory() as temporary:
        result = _simulate(python, bundle, rounds, sites, folder or Path(temporary))
    write_json(Path.cwd() / Path(output or REPOSITORY / RESULTS).expanduser() / f"{bundle}.json", result)
    for site, scores in result["scores"].items():
        print(f"{site}: {result['metric']} {', '.join(f'{score:.3f}' for score in scores)}", flush=True)


def _simulate(python: Path, bundle: str, rounds: int, sites: int, folder: Path) -> dict[str, Any]:
    write_job(folder / "job", REPOSITORY / "bundles" / bundle, folder / "sites", sites, rounds)
    command = [
        str(python), "-m", "nvflare.cli", "simulator", str(folder / "job"),
        "-w", str(folder / "nvflare"), "-n", str(sites), "-t", str(sites),
    ]  # fmt: skip
    print(f"{bundle}: {rounds} rounds with {sites} sites", flush=True)
    started = time.monotonic()
    status = subprocess.run(command, check=False, cwd=folder).returncode
    seconds = time.monotonic() - started
    files = list((folder / "nvflare").rglob(METRICS_FILE))
    scores = json.loads(files[0].read_text(encoding="utf-8")) if files else {}
    # the simulator ends with status 0 after a site's training failed
    if status or len(scores) != sites or any(len(found) != rounds + 1 for found in scores.values()):
        raise UserError(
            f"federated: NVFlare's run failed with status {status}, scores {scores}; the lines above say why"
        )
    recipe = RECIPES[bundle]
    return {
        "bundle": bundle, "rounds": rounds, "sites": sites, "epochs_per_round": recipe.epochs,
        "options": dict(recipe.options), "metric": recipe.metric, "scores": dict(sorted(scores.items())),
        "seconds": round(seconds), "packages": _versions(python),
    }  # fmt: skip


def _versions(python: Path) -> dict[str, str]:
    code = f"import json, importlib.metadata as m; print(json.dumps({{n: m.version(n) for n in {VERSIONS}}}))"
    said = subprocess.run([str(python), "-c", code], check=True, capture_output=True, text=True).stdout
    return json.loads(said)
