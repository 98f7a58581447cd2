# SPDX-License-Identifier: Apache-2.0
"""Tests of signatures: good, tampered, missing, of another's key."""

from __future__ import annotations

import base64
import json
import shutil

import pytest

from tests.volseg.registry.tiny_registry import NAME, bundle_files, bundle_zip, entry_of, publish, release
from volseg.errors import UserError
from volseg.registry.client import download, verify
from volseg.registry.index import INDEX, INDEX_SIGNATURE
from volseg.registry.manifest import MANIFEST
from volseg.registry.signature import check_signature, sign

pytest.importorskip("model_signing")
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

PLAIN = serialization.NoEncryption()


def write_keys(folder, name, key, encryption=PLAIN):
    """NAME.key and NAME.pub."""
    private, public = folder / f"{name}.key", folder / f"{name}.pub"
    private.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption))
    public.write_bytes(
        key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    return private, public


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    """Folder of key pairs: ours, foreign, p384, and such that cannot be used."""
    folder = tmp_path_factory.mktemp("keys")
    curve = ec.SECP256R1()
    write_keys(folder, "ours", ec.generate_private_key(curve))
    write_keys(folder, "foreign", ec.generate_private_key(curve))
    write_keys(folder, "p384", ec.generate_private_key(ec.SECP384R1()))
    write_keys(folder, "secp256k1", ec.generate_private_key(ec.SECP256K1()))
    write_keys(folder, "rsa", rsa.generate_private_key(65537, 2048))
    write_keys(folder, "ed25519", ed25519.Ed25519PrivateKey.generate())
    write_keys(folder, "locked", ec.generate_private_key(curve), serialization.BestAvailableEncryption(b"password"))
    (folder / "text.key").write_text("no key")
    (folder / "text.pub").write_text("no key")
    (folder / "broken.pub").write_text("-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n")
    (folder / "swapped.pub").write_bytes((folder / "ours.key").read_bytes())
    (folder / "swapped.key").write_bytes((folder / "ours.pub").read_bytes())
    (folder / "folder.pub").mkdir()
    return folder


@pytest.fixture
def signed(registry, keys):
    """A registry with a signed release."""
    entry = release(registry, signature=f"{NAME}_v0.1.0.zip.sig")
    (registry / entry.signature).write_bytes(sign(registry / entry.source, keys / "ours.key"))
    return registry


def refused(registry, bundle_dir, key, message):
    with pytest.raises(UserError, match=message) as error:
        download(NAME, registry, bundle_dir, public_key=key)
    assert not (bundle_dir / NAME).exists()
    assert str(error.value).isprintable()


@pytest.mark.parametrize("name", ["ours", "p384"])
def test_good_signature(registry, bundle_dir, keys, name):
    entry = release(registry, signature="a.sig")
    (registry / "a.sig").write_bytes(sign(registry / entry.source, keys / f"{name}.key"))
    assert download(NAME, registry, bundle_dir, public_key=keys / f"{name}.pub").is_dir()


def test_signature_has_the_format_of_the_openssf(signed):
    content = json.loads((signed / f"{NAME}_v0.1.0.zip.sig").read_text())
    assert content["mediaType"] == "application/vnd.dev.sigstore.bundle.v0.3+json"
    statement = json.loads(base64.b64decode(content["dsseEnvelope"]["payload"]))
    assert statement["predicateType"] == "https://model_signing/signature/v1.0"


def test_zip_that_was_exchanged_together_with_its_index(signed, bundle_dir, keys):
    path = signed / f"{NAME}_v0.1.0.zip"
    bundle_zip(path, bundle_files() | {"LICENSE": b"evil"})
    publish(signed, entry_of(path, signature=f"{path.name}.sig"))
    refused(signed, bundle_dir, keys / "ours.pub", "not signed by the holder of .*ours.pub: .*mismatch")
    assert download(NAME, signed, bundle_dir).is_dir()  # nobody asked


def test_signature_of_another_version(signed, bundle_dir, keys):
    entry = release(signed, "0.2.0", signature=f"{NAME}_v0.1.0.zip.sig")
    assert entry.release.version == "0.2.0"
    refused(signed, bundle_dir, keys / "ours.pub", "not signed by the holder of .*ours.pub: .*mismatch")


@pytest.mark.parametrize("part", ["payload", "sig"])
def test_tampered_signature(signed, bundle_dir, keys, part):
    path = signed / f"{NAME}_v0.1.0.zip.sig"
    content = json.loads(path.read_text())
    envelope = content["dsseEnvelope"]
    holder = envelope if part == "payload" else envelope["signatures"][0]
    data = bytearray(base64.b64decode(holder[part]))
    data[len(data) // 2] ^= 1
    holder[part] = base64.b64encode(data).decode()
    path.write_text(json.dumps(content))
    refused(signed, bundle_dir, keys / "ours.pub", "not signed by the holder of .*ours.pub: ")


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{}",
        b"[]",
        b"null",
        b"\xff",
        b"no signature",
        b"[" * 100_000,
        b'{"verificationMaterial": {}}',
        b'{"verificationMaterial": {"publicKey": 1}}',
        b'{"verificationMaterial": null}',
    ],
)
def test_text_that_is_no_signature(signed, bundle_dir, keys, text):
    (signed / f"{NAME}_v0.1.0.zip.sig").write_bytes(text)
    refused(signed, bundle_dir, keys / "ours.pub", "not signed by the holder of .*ours.pub: ")


@pytest.mark.parametrize("removed", ["publicKey", "dsseEnvelope", "signatures", "hint"])
def test_signature_that_lacks_a_part(signed, bundle_dir, keys, removed):
    path = signed / f"{NAME}_v0.1.0.zip.sig"
    content = json.loads(path.read_text())
    content["verificationMaterial"].pop(removed, None)
    content.pop(removed, None)
    content.get("dsseEnvelope", {}).pop(removed, None)
    if removed == "hint":  # of the key; without it the signature itself has to tell
        content["verificationMaterial"]["publicKey"].pop("hint")
    path.write_text(json.dumps(content))
    refused(signed, bundle_dir, keys / "foreign.pub", "not signed by the holder of .*foreign.pub: ")


def test_foreign_key(signed, bundle_dir, keys):
    refused(signed, bundle_dir, keys / "foreign.pub", "not signed by the holder of .*foreign.pub: Key mismatch")


def test_missing_signature(registry, server, bundle_dir, keys):
    release(registry)
    refused(server.url, bundle_dir, keys / "ours.pub", "v0.1.0 of .*: has no signature to verify; ask for")
    assert server.ranges(f"/{NAME}_v0.1.0.zip") == []


def test_signature_that_is_in_the_index_only(signed, bundle_dir, keys):
    (signed / f"{NAME}_v0.1.0.zip.sig").unlink()
    refused(signed, bundle_dir, keys / "ours.pub", "zip.sig: not found, although the index lists it")


def test_bundle_that_is_there_is_verified_too(signed, bundle_dir, keys):
    download(NAME, signed, bundle_dir)
    with pytest.raises(UserError, match=r"not signed by the holder of .*foreign\.pub"):
        download(NAME, signed, bundle_dir, public_key=keys / "foreign.pub")
    with pytest.raises(UserError, match="cannot be used as a public key"):
        download(NAME, signed, bundle_dir, public_key="")  # of a variable that is not set
    assert download(NAME, signed, bundle_dir, public_key=keys / "ours.pub").is_dir()


@pytest.mark.parametrize(
    ("name", "received"),
    [
        ("rsa", "not an elliptic curve key"),
        ("ed25519", "not an elliptic curve key"),
        ("secp256k1", "Unsupported key for curve 'secp256k1'"),
        ("nowhere", "No such file or directory"),
        ("folder", "Is a directory"),
        ("text", ""),
        ("broken", ""),
        ("swapped", ""),
    ],
)
def test_public_key_that_cannot_be_used(signed, bundle_dir, keys, name, received):
    refused(signed, bundle_dir, keys / f"{name}.pub", f"{name}.pub: cannot be used as a public key: {received}")


@pytest.mark.parametrize("name", ["rsa", "ed25519", "secp256k1", "locked", "nowhere", "text", "swapped"])
def test_private_key_that_cannot_be_used(signed, keys, name):
    with pytest.raises(UserError, match=f"{name}.key: cannot be used as a private key: ") as error:
        sign(signed / f"{NAME}_v0.1.0.zip", keys / f"{name}.key")
    assert str(error.value).isprintable()


def test_name_of_the_file_makes_no_difference(signed, tmp_path, keys):
    """A download has another name until it is in place; the manifest inside holds name and version."""
    (tmp_path / "part").write_bytes((signed / f"{NAME}_v0.1.0.zip").read_bytes())
    check_signature(tmp_path / "part", (signed / f"{NAME}_v0.1.0.zip.sig").read_bytes(), keys / "ours.pub")


def sign_index(registry, keys):
    (registry / INDEX_SIGNATURE).write_bytes(sign(registry / INDEX, keys / "ours.key"))


@pytest.fixture
def two_versions(signed, keys):
    """A registry with two signed releases and a signed index."""
    entry = release(signed, "0.2.0", signature=f"{NAME}_v0.2.0.zip.sig")
    (signed / entry.signature).write_bytes(sign(signed / entry.source, keys / "ours.key"))
    sign_index(signed, keys)
    return signed


def test_signed_index(two_versions, bundle_dir, keys, caplog):
    folder = download(NAME, two_versions, bundle_dir, public_key=keys / "ours.pub")
    assert verify(folder, two_versions, keys / "ours.pub")[0].release.version == "0.2.0"
    assert caplog.messages == []


@pytest.mark.parametrize("change", ["hidden", "swapped", "renamed", "older"])
def test_index_that_is_not_the_signed_one(two_versions, bundle_dir, keys, change):
    index = json.loads((two_versions / INDEX).read_text())
    old, new = (f"{NAME}_v{version}" for version in ("0.1.0", "0.2.0"))
    changed = {
        "hidden": {old: index[old]},
        "swapped": {old: index[new], new: index[old]},
        "renamed": index | {f"{NAME}_v0.3.0": index[old]},
        "older": index | {new: index[new] | {"date": "2025-01-02"}},
    }[change]
    (two_versions / INDEX).write_text(json.dumps(changed))
    for bundle in (NAME, f"{NAME}==0.1.0"):
        with pytest.raises(UserError, match=rf"{INDEX}: not signed by the holder of .*ours\.pub: .*mismatch"):
            download(bundle, two_versions, bundle_dir, public_key=keys / "ours.pub")
    assert not bundle_dir.exists()


def test_index_without_a_signature_is_told(signed, bundle_dir, keys, caplog):
    download(NAME, signed, bundle_dir, public_key=keys / "ours.pub")
    download(f"{NAME}==0.1.0", signed, bundle_dir, public_key=keys / "ours.pub")
    verify(bundle_dir / NAME, signed, keys / "ours.pub")
    [message] = caplog.messages
    assert message.startswith(f"{signed / INDEX_SIGNATURE}: not found, so the registry could hide versions; ")


def test_verify_against_the_signed_zip(signed, bundle_dir, keys, tmp_path):
    folder = download(NAME, signed, bundle_dir)
    assert verify(folder, signed, keys / "ours.pub")[1] == []
    with pytest.raises(UserError, match=r"not signed by the holder of .*foreign\.pub"):
        verify(folder, signed, keys / "foreign.pub")
    with pytest.raises(UserError, match=r"ours\.pub: a key needs the registry with the signature; add --registry"):
        verify(folder, public_key=keys / "ours.pub")
    # a registry of someone else's, whose index lists the manifest that was installed from it
    other = shutil.copytree(signed, tmp_path / "other")
    path = bundle_zip(other / f"{NAME}_v0.1.0.zip", bundle_files() | {"LICENSE": b"evil"})
    publish(other, entry_of(path, signature=f"{path.name}.sig"))
    folder = download(NAME, other, bundle_dir, force=True)
    assert verify(folder, other)[1] == []
    with pytest.raises(UserError, match=r"v0\.1\.0: not signed by the holder of .*ours\.pub: .*mismatch"):
        verify(folder, other, keys / "ours.pub")
    with pytest.raises(UserError, match=rf"{MANIFEST}: is not the manifest of {NAME}_v0\.1\.0 in .*registry; download"):
        verify(folder, signed, keys / "ours.pub")
