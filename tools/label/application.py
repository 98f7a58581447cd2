# SPDX-License-Identifier: Apache-2.0
"""The folder of the app: MONAI Label's monaibundle app and the packed bundles in its model folder."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tools import REPOSITORY
from tools.check.files import bundle_files
from tools.pack import pack
from volseg.registry.bundle_zip import unpack
from volseg.storage.files import replacement

__all__ = ["known_models", "prepare_application"]

SOURCES = Path(__file__).with_name("app")
WEIGHTS = "models/model.pt"


def known_models() -> list[str]:
    """Names of the bundles of this checkout."""
    return sorted(path.parts[-3] for path in REPOSITORY.glob("bundles/*/configs/metadata.json"))


def prepare_application(folder: Path, models: Sequence[str], repack: bool = False) -> None:
    """Put the app and the bundles into a folder. Bundles that are there stay, with what they learnt.

    Args:
        folder: of the app.
        models: names of bundles.
        repack: replace bundles that are there, weights included.

    Raises:
        UserError: what :func:`tools.pack.pack` raises.
    """
    (folder / "model").mkdir(parents=True, exist_ok=True)
    for source in SOURCES.glob("*.py"):
        shutil.copyfile(source, folder / source.name)
    for name in models:
        target = folder / "model" / name
        if target.is_dir() and not repack:
            print(f"{name}: {target}, as it is; --repack takes it from the checkout again", flush=True)
            continue
        print(f"{name}: checking and packing", flush=True)
        _pack_into(target, name)


def _pack_into(target: Path, name: str) -> None:
    root = REPOSITORY / "bundles" / name
    # of a bundle too large to carry its weights, those that training wrote
    trained = root / WEIGHTS
    model = str(trained) if trained.is_file() and WEIGHTS not in bundle_files(root) else ""
    with tempfile.TemporaryDirectory() as temporary:
        pack(name, temporary, model)
        zips = list(Path(temporary).glob("*.zip"))
        with replacement(target) as unpacked:
            unpack(zips[0], unpacked)
