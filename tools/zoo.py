# SPDX-License-Identifier: Apache-2.0
"""``python -m tools zoo``: the folder of a bundle for a pull request to MONAI's model zoo."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import yaml

from tools.pack import pack
from tools.sbom import SBOM
from volseg.registry.bundle_zip import unpack
from volseg.registry.large_files import LARGE_FILES, large_files
from volseg.registry.manifest import MANIFEST, sha256
from volseg.storage.files import replacement


def zoo(name: str, output_dir: str, weights_url: str = "") -> None:
    """Write ``models/NAME``, as MONAI's model zoo keeps bundles: its files, ``volseg``, and no file above 25 MB.

    The checks of ``python -m tools check`` run first. The zoo's own programs make the zip and its checksum, so there is
    no manifest.

    Args:
        name: bundle of this checkout.
        output_dir: folder of a clone of the zoo, or any other; ``models/NAME`` in it is replaced.
        weights_url: address of a folder where the weights are published. Then they are listed in ``large_files.yml``
            and lie in ``large_files/NAME``, to be uploaded; without it they stay in the bundle.

    Raises:
        UserError: what packing raises; an address that is no URL.
    """
    output = Path(str(output_dir))
    target = output / "models" / str(name)
    with tempfile.TemporaryDirectory() as temporary:
        pack(name, temporary)
        [packed] = Path(temporary).glob("*.zip")
        with replacement(target) as folder:
            unpack(packed, folder)
            for file in (MANIFEST, SBOM):
                (folder / file).unlink()
            if weights_url:
                uploads = _list_weights(folder, str(weights_url).rstrip("/"))
                with replacement(output / LARGE_FILES.removesuffix(".yml") / str(name)) as moved:
                    for path in uploads:
                        shutil.move(path, moved / path.name)
    print(f"{target}: {sum(path.is_file() for path in target.rglob('*'))} files")


def _list_weights(folder: Path, url: str) -> list[Path]:
    weights = sorted((folder / "models").glob("*.pt"))
    entries = [
        {
            "path": path.relative_to(folder).as_posix(),
            "url": f"{url}/{path.name}",
            "hash_val": sha256(path),
            "hash_type": "sha256",
        }
        for path in weights
    ]
    (folder / LARGE_FILES).write_text(yaml.safe_dump({"large_files": entries}, sort_keys=False), encoding="utf-8")
    large_files(folder, "weights_url")  # tells an address that no client would ask
    return weights
