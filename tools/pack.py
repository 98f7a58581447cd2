# SPDX-License-Identifier: Apache-2.0
"""``python -m tools pack``: write a bundle and ``volseg`` as one reproducible zip."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from tools import REPOSITORY
from tools.check.bundle import Bundle
from tools.check.command import findings
from tools.check.files import WEIGHTS, bundle_files
from tools.markdown import linked_files, moved
from tools.sbom import LOCK, SBOM, bill_of_materials
from volseg.errors import UserError
from volseg.registry.bundle_zip import unpack
from volseg.registry.manifest import MANIFEST, Manifest
from volseg.registry.release import Release
from volseg.storage.files import atomic_path, claim_folder, remove_leftovers
from volseg.weights import UNREADABLE

CARD = "docs/README.md"
RECORD = "models/model.json"
CODE_LICENSE = "Apache-2.0"
# MONAI, PyTorch and NumPy stand apart from the other packages in the metadata
STANDING_APART = {"monai": "monai_version", "torch": "pytorch_version", "numpy": "numpy_version"}


def pack(name: str, output_dir: str, model: str = "", weights_license: str = "") -> None:
    """Write NAME_vX.Y.Z.zip, which needs only published packages wherever it is unpacked.

    It contains the bundle's files under version control, ``volseg``, the pages that the model card links to, a bill of
    materials (CycloneDX), and a manifest with the SHA-256 and size of every file. The checks of ``python -m tools
    check`` run first. Packing the same files of the same revision again gives the same bytes.

    Args:
        name: bundle of this checkout.
        output_dir: folder for the zip.
        model: weights to pack as models/model.pt, with the JSON file beside them, instead of the bundle's own; needed
            for a bundle whose weights are too large for version control.
        weights_license: SPDX identifier of the weights' licence; by default Apache-2.0 for the bundle's own, which were
            trained on phantoms, and NOASSERTION for others.

    Raises:
        UserError: the bundle does not exist, fails the check or is not in a git checkout, ``model`` holds no weights,
            another run writes the same zip, or the folder cannot be written.
    """
    if str(name) not in (known := bundle_names()):
        raise UserError(f"{REPOSITORY / 'bundles'}: has no bundle {name!r}; choose one of {', '.join(known)}")
    bundle = Bundle.read(REPOSITORY / "bundles" / str(name))
    if found := findings(bundle):
        for _, finding in found:
            print(finding.line(bundle.title))
        raise UserError(f"{bundle.root}: not packed because of {len(found)} findings of the check; fix them")
    revision = _revision(bundle.title, "volseg", LOCK, *card_pages(bundle.name))
    contents = _contents(bundle.root, Path(str(model)) if model else None)
    licenses = {"code": CODE_LICENSE}
    if any(path.endswith(".pt") for path in contents):
        licenses["weights"] = weights_license or ("NOASSERTION" if model else CODE_LICENSE)
    metadata = bundle.metadata
    required = {package: metadata[key] for package, key in STANDING_APART.items()}
    manifest = Manifest(
        Release(bundle.name, metadata["version"]),
        revision,
        licenses,
        dict(sorted((required | metadata["required_packages_version"]).items())),
        {path: _facts(data) for path, data in contents.items()},
    )
    contents[SBOM] = bill_of_materials(manifest)
    manifest.files[SBOM] = _facts(contents[SBOM])
    contents[MANIFEST] = (json.dumps(manifest.as_json(), indent=4) + "\n").encode()
    target = Path(str(output_dir)) / manifest.release.zip_name
    claim_folder(target)
    remove_leftovers(target.parent, below=False)
    with atomic_path(target) as temporary, TemporaryDirectory() as folder:
        _write_zip(temporary, bundle.name, contents)
        unpack(temporary, Path(folder))  # a zip that cannot be unpacked is not written
    print(f"{target}: {len(contents)} files, {target.stat().st_size / 1e6:.1f} MB, revision {revision}")
    if WEIGHTS not in contents:
        print(f"without weights: give --model {bundle.title}/{WEIGHTS} after running train.json")


def bundle_names() -> list[str]:
    """Names of the bundles of this checkout."""
    return sorted(path.parts[-3] for path in REPOSITORY.glob("bundles/*/configs/metadata.json"))


def _contents(root: Path, weights: Path | None) -> dict[str, bytes]:
    """The content of every file of the zip by its path in the bundle, sorted by path."""
    files = {path: root / path for path in bundle_files(root, REPOSITORY)}
    volseg = REPOSITORY / "volseg"
    files |= {f"volseg/{path}": volseg / path for path in bundle_files(volseg, REPOSITORY)}
    if weights:
        _check_weights(weights)
        files[WEIGHTS] = weights
        files.pop(RECORD, None)  # describes the bundle's own weights
        if weights.with_suffix(".json").is_file():
            files[RECORD] = weights.with_suffix(".json")
    contents = {path: file.read_bytes() for path, file in files.items()}
    return dict(sorted((contents | _texts(root.name)).items()))


def card_pages(name: str) -> list[str]:
    """The pages of the repository that a model card links to."""
    card = f"bundles/{name}/{CARD}"
    linked = linked_files((REPOSITORY / card).read_text(encoding="utf-8"), card)
    return sorted({path for path in linked if path.startswith("docs/")})


def _texts(name: str) -> dict[str, bytes]:
    """The model card and its pages as they hold in the unpacked bundle, whose folder is where commands are run."""
    folder, pages = f"bundles/{name}/", card_pages(name)

    def place(path: str) -> str | None:
        return path.removeprefix(folder) if path.startswith(folder) else path if path in pages else None

    texts = {}
    for path in (folder + CARD, *pages):
        new_path = path.removeprefix(folder)
        text = moved((REPOSITORY / path).read_text(encoding="utf-8"), path, new_path, place)
        text = re.sub(rf"the folder that\s+contains `bundles/({name}|NAME)/`", "the bundle's folder", text)
        texts[new_path] = re.sub(rf"bundles/({name}|NAME)/", "", text).encode()
    return texts


def _check_weights(path: Path) -> None:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except UNREADABLE as error:
        reason = " ".join(str(error).split())[:160]
        raise UserError(f"{path}: holds no weights: {reason}; give --model a file that training wrote") from error
    if not isinstance(state, dict) or not state or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise UserError(
            f"{path}: holds no weights: {type(state).__name__} instead of a flat dictionary of tensors; "
            "give --model a weights file that training wrote, such as model.pt, not a checkpoint"
        )


def _facts(data: bytes) -> dict[str, str | int]:
    return {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}


def _revision(*paths: str) -> str:
    """The commit that is checked out, with ``-dirty`` appended if the packed files differ from it.

    Raises:
        UserError: not a git checkout, so released files cannot be told from those that running the bundle left.
    """
    try:
        changed = _git("status", "--porcelain", "--", *paths)
        return _git("rev-parse", "HEAD") + ("-dirty" if changed else "")
    except (OSError, subprocess.CalledProcessError) as error:
        said = " ".join((getattr(error, "stderr", "") or str(error)).split()).rstrip(".")
        raise UserError(f"{REPOSITORY}: not a git checkout to pack from: {said}; clone the repository") from error


def _git(*arguments: str) -> str:
    command = ["git", "--no-optional-locks", "-C", str(REPOSITORY), *arguments]
    return subprocess.run(command, capture_output=True, check=True, text=True).stdout.strip()


def _write_zip(path: Path, top: str, contents: dict[str, bytes]) -> None:
    """Write files below a top folder, uncompressed because the output of zlib depends on its version."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(contents):
            entry = zipfile.ZipInfo(f"{top}/{name}", date_time=(1980, 1, 1, 0, 0, 0))
            entry.create_system = 3  # Unix, on any system
            entry.external_attr = 0o100644 << 16
            archive.writestr(entry, contents[name])
