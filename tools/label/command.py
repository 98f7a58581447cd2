# SPDX-License-Identifier: Apache-2.0
"""``python -m tools label``: a MONAI Label server with the bundles, for 3D Slicer."""

from __future__ import annotations

import shutil
import signal
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from tools import REPOSITORY
from tools.check.files import WEIGHTS, bundle_files
from tools.label.environment import LABEL
from tools.label.server import LabelServer, check_port
from tools.pack import bundle_names, pack
from volseg.errors import UserError
from volseg.registry.bundle_zip import unpack
from volseg.storage.files import replacement

SOURCES = Path(__file__).with_name("app")
ENVIRONMENT = ".venv-label"
APPLICATION = "build/label"


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


def label(
    studies: str,
    models: str | tuple[str, ...] = "",
    port: int = 8000,
    host: str = "127.0.0.1",
    epistemic_model: str = "",
    environment: str = "",
    application: str = "",
    repack: bool = False,
) -> None:
    """Serve the bundles to 3D Slicer with MONAI Label, until Ctrl-C.

    The first start builds an environment and packs the bundles. What they learn from labels stays in the folder of the
    app, and your checkout as it is.

    Args:
        studies: folder of the images; labels are saved below it.
        models: names of bundles, with commas; all of the checkout by default.
        port: to listen at.
        host: address to listen at. MONAI Label asks nobody for a password: anyone who reaches the address can read the
            images and change the labels.
        epistemic_model: bundle whose uncertainty scores unlabelled images.
        environment: folder of the environment; .venv-label of the checkout by default.
        application: folder of the app with the bundles; build/label of the checkout by default.
        repack: take the bundles from the checkout again, and lose what they learnt from labels.

    Raises:
        UserError: no such folder or bundle, a port in use, what building the environment or packing raises.
    """
    folder = Path(str(studies)).expanduser().resolve()
    if not folder.is_dir():
        raise UserError(f"studies: {studies} is not a folder; give a folder with images, or an empty one")
    names = _names(models) or bundle_names()
    for name in [*names, *_names(epistemic_model)]:
        if name not in bundle_names():
            raise UserError(f"models: no bundle named {name}; choose from {', '.join(bundle_names())}")
    if epistemic_model and epistemic_model not in names:
        raise UserError(f"epistemic_model: {epistemic_model} is not served; add it to --models")
    check_port(str(host), port)
    python = LABEL.ensure(_absolute(environment or REPOSITORY / ENVIRONMENT))
    app = _absolute(application or REPOSITORY / APPLICATION)
    prepare_application(app, names, repack)
    configuration = {"epistemic_model": epistemic_model} if epistemic_model else {}
    server = LabelServer(python, app, folder, names, str(host), port, configuration)
    print(f"starting MONAI Label with {', '.join(names)}", flush=True)
    for number in (signal.SIGINT, signal.SIGTERM):  # of a shell's background jobs the first is ignored otherwise
        signal.signal(number, _interrupt)
    try:
        with server.running() as process:
            print(
                f"\nMONAI Label is running. In 3D Slicer, module MONAI Label, type as server: {server.address}\n"
                f"Images and labels: {folder}\nBundles and what they learn: {app / 'model'}\nCtrl-C stops it.\n",
                flush=True,
            )
            status = process.wait()
    except KeyboardInterrupt:
        print("MONAI Label has stopped.", flush=True)
        return
    raise UserError(f"label: MONAI Label's server ended with exit status {status}; the lines above say why")


def _names(text: str | tuple[str, ...]) -> list[str]:
    # Fire makes a tuple of a,b
    parts = text.split(",") if isinstance(text, str) else text
    return [name for part in parts if (name := str(part).strip())]


def _absolute(path: str | Path) -> Path:
    # the interpreter of an environment is a link, which resolving would follow; its folder may be one too
    return Path.cwd() / Path(path).expanduser()


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
