# SPDX-License-Identifier: Apache-2.0
"""``python -m tools publish``: put a packed bundle into a registry."""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import json
import shlex
import tempfile
from functools import partial
from pathlib import Path

from tools.hub_card import HUB_CARD, flat_metrics, hub_card
from tools.registry_store import PAGE, RegistryStore, registry_page
from volseg.errors import UserError
from volseg.registry.bundle_zip import unpack
from volseg.registry.index import INDEX, Entry, as_index
from volseg.registry.manifest import MANIFEST, Manifest, sha256
from volseg.registry.release import Release
from volseg.registry.signature import sign as sign_zip
from volseg.storage.files import replacement, write_json, writing

LAYOUTS = ("folder", "github", "huggingface")
PICTURE = "docs/figures/phantom.png"


def publish(zip: str, registry: str, sign: str = "", layout: str = "folder", base_url: str = "") -> None:
    """Put NAME_vX.Y.Z.zip into a registry and update its index and page.

    A registry is a plain folder with the zips, ``model_info.json`` in the format of MONAI's model zoo with SHA-256,
    size, date and licence, and ``index.html`` for people. A released version is never overwritten. Several publishers
    may work at once, and each may be killed at any moment: a version is released once its own entry,
    NAME_vX.Y.Z.json, exists, and the next publication, also of the same zip, completes the index.

    Args:
        zip: written by ``python -m tools pack``.
        registry: folder, created if absent, or the URL of a storage that fsspec can write to, such as ``s3://bucket/path``.
        sign: PEM file of a private elliptic curve key; signatures are put beside the zip and the index.
        layout: ``folder``; ``github`` for a tree whose ``release`` becomes the assets of a release and whose ``models``
            is committed under the release's tag; ``huggingface`` for a folder of unpacked bundles, each with
            a ``README.md`` for the Hub, and the program that uploads it.
        base_url: where the zips can be downloaded, such as ``https://github.com/OWNER/REPO/releases/download/TAG``;
            without it the index lists them relative to itself.
    """
    path, registry, sign, base_url = Path(str(zip)), str(registry), _text(sign, "sign"), _text(base_url, "base_url")
    _check_layout(str(layout), registry, bool(sign or base_url))
    if base_url and not base_url.startswith(("http://", "https://")):
        raise UserError(f"--base_url must start with http:// or https://, got {base_url}")
    if not path.is_file():
        raise UserError(f"{path}: no such file; make a zip with `python -m tools pack`")
    if layout == "huggingface":
        _unpack_for_hub(path, Path(registry))
        return
    with writing(path), tempfile.TemporaryDirectory() as temporary:
        entry, picture = _describe(path, Path(temporary), base_url)
        signature = sign_zip(path, Path(sign)) if sign else b""
    if signature:
        entry = dataclasses.replace(entry, signature=f"{entry.release.zip_name}.sig")
    store = RegistryStore(f"{registry}/release" if layout == "github" else registry)
    with store.locked():
        standing = {e.release.key: e for e in store.entries()}.get(entry.release.key)
        if not standing:
            if not sign:
                store.refuse_unsigned()
            # the zip first: of two publishers, the one whose zip stays writes what belongs to it
            store.create_zip(entry.release.zip_name, path, entry.sha256)
            if signature:
                store.replace(entry.signature, signature)
            if picture:
                store.replace(entry.picture, picture)
        released = standing or store.create_entry(entry)
        _check_same(store, released, entry)
        entries = store.publish_index(registry_page, partial(_sign_index, key=Path(sign)) if sign else None)
        if layout == "github":
            # MONAI's client sorts versions as text, so 0.9.0 would hide 0.10.0: it is shown the newest only
            newest = {e.release.name: e for e in entries}
            write_json(Path(registry) / "models" / INDEX, as_index(newest.values()))
    count = f"{len(entries)} version{'' if len(entries) == 1 else 's'}"
    print(f"{store.name}: {entry.release.key} {'was' if standing else 'is'} released, {count}, see {PAGE}")


def _text(value: object, option: str) -> str:
    if value is True:
        raise UserError(f"--{option} needs a value; write one after it")
    return str(value)


def _check_layout(layout: str, registry: str, has_options: bool) -> None:
    if layout not in LAYOUTS:
        raise UserError(f"--layout must be one of {', '.join(LAYOUTS)}, got {layout}")
    if layout != "folder" and "://" in registry:
        raise UserError(f"--layout {layout} writes a tree to upload, so --registry must be a folder, got {registry}")
    if layout == "huggingface" and has_options:
        raise UserError("--layout huggingface holds no zips; omit --sign and --base_url")


def _unpack(path: Path, folder: Path) -> Manifest:
    """Unpack a zip that is named after its bundle, compare every file with the manifest and return the manifest."""
    manifest = unpack(path, folder)
    if path.name != manifest.release.zip_name:
        raise UserError(f"{path}: contains {manifest.release.key} and must be named after it; pack it again")
    return manifest


def _describe(path: Path, folder: Path, base_url: str) -> tuple[Entry, bytes]:
    """The entry of a zip, which is unpacked into an empty folder, and the content of its picture."""
    manifest = _unpack(path, folder)
    release = manifest.release
    try:
        metadata = json.loads((folder / "configs" / "metadata.json").read_text(encoding="utf-8"))
        version, title, task = (str(metadata[key]) for key in ("version", "name", "task"))
        metrics = dict(flat_metrics(metadata.get("eval_metrics", {})))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: configs/metadata.json is unusable: {error!r}; pack the bundle again") from error
    if version != release.version:
        raise UserError(
            f"{path}: is version {version} in its metadata, {release.version} in its manifest; pack it again"
        )
    picture = (folder / PICTURE).read_bytes() if (folder / PICTURE).is_file() else b""
    entry = Entry(
        release=release,
        source=f"{base_url.rstrip('/')}/{release.zip_name}" if base_url else release.zip_name,
        checksum=_sha1(path),
        sha256=sha256(path),
        manifest_sha256=sha256(folder / MANIFEST),
        size=path.stat().st_size,
        unpacked_size=sum(file["size"] for file in manifest.files.values()),
        date=datetime.datetime.now(datetime.UTC).date().isoformat(),
        license=" AND ".join(sorted(set(manifest.licenses.values()))),
        title=title,
        task=task,
        metrics=metrics,
        picture=f"{release.key}.png" if picture else "",
    )
    return entry, picture


def _sha1(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.sha1(usedforsecurity=False)).hexdigest()


def _sign_index(index: bytes, key: Path) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / INDEX
        path.write_bytes(index)
        return sign_zip(path, key)


def _check_same(store: RegistryStore, released: Entry, entry: Entry) -> None:
    if released.sha256 != entry.sha256:
        raise UserError(
            f"{store.name}: {entry.release.key} is already released with other contents, SHA-256 "
            f"{released.sha256[:12]} instead of {entry.sha256[:12]}; raise the version in metadata.json"
        )
    if entry.signature and not released.signature:
        raise UserError(
            f"{store.name}: {entry.release.key} is already released without a signature; "
            "omit --sign, or raise the version in metadata.json"
        )


def _unpack_for_hub(path: Path, folder: Path) -> None:
    release = Release.parse(path.name.removesuffix(".zip"))
    target = folder / release.name
    if target.exists() and not ((target / MANIFEST).is_file() and not Manifest.read(target).changes(target)):
        raise UserError(
            f"{target}: is not an unchanged unpacked bundle and will not be replaced; "
            "move it away or give another --registry"
        )
    with writing(target), replacement(target) as new:
        entry, _ = _describe(path, new, "")
        (new / HUB_CARD).write_text(hub_card(new, entry), encoding="utf-8")
    repository = f"OWNER/{release.name}"
    # MONAI's push_to_hf_hub would write its own README.md; without delete_patterns, files of the previous version stay
    program = (
        f"from huggingface_hub import HfApi; hub = HfApi(); hub.create_repo({repository!r}, private=True, "
        f"exist_ok=True); hub.upload_folder(repo_id={repository!r}, folder_path={str(target)!r}, delete_patterns='*'); "
        f"hub.create_tag({repository!r}, tag={release.version!r}, exist_ok=True)"
    )
    print(f"{target}: {release.key}. Upload it with")
    print(f"python -c {shlex.quote(program)}")
