# SPDX-License-Identifier: Apache-2.0
"""Signatures of zips by a key pair, in the format of the OpenSSF (package ``model-signing``)."""

from __future__ import annotations

import tempfile
from pathlib import Path
from types import ModuleType

from volseg.errors import UserError

__all__ = ["check_signature", "sign"]

# what model-signing raises for keys that it cannot use
KEY_ERRORS = (OSError, ValueError, TypeError, AttributeError)
# and for texts that are no signatures, or not of its kind
SIGNATURE_ERRORS = (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError)


def sign(zip_path: Path, private_key: Path) -> bytes:
    """The signature of a zip.

    Args:
        zip_path: what is signed, by its SHA-256.
        private_key: PEM file of an elliptic curve key (P-256, P-384 or P-521) without a password.

    Raises:
        UserError: ``model-signing`` is not installed, or the key cannot be used.
    """
    model_signing = _model_signing()
    try:
        signer = model_signing.signing.Config().use_elliptic_key_signer(private_key=private_key)
    except KEY_ERRORS as error:
        raise UserError(
            f"{private_key}: no key that can sign. Received: {_reason(error)}. "
            "Give the PEM file of a private elliptic curve key without a password."
        ) from error
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "signature"
        signer.sign(zip_path, path)
        return path.read_bytes()


def check_signature(zip_path: Path, signature: bytes, public_key: Path, name: str | None = None) -> None:
    """See that the holder of a key signed a zip.

    Args:
        zip_path: the zip.
        signature: of it.
        public_key: PEM file.
        name: what to call the zip in errors; its path unless given.

    Raises:
        UserError: another key signed, or another zip, or what was received is no signature.
    """
    model_signing = _model_signing()
    try:
        verifier = model_signing.verifying.Config().use_elliptic_key_verifier(public_key=public_key)
    except KEY_ERRORS as error:
        raise UserError(
            f"{public_key}: no key that can verify. Received: {_reason(error)}. "
            "Give the PEM file of a public elliptic curve key."
        ) from error
    from cryptography.exceptions import InvalidSignature  # noqa: PLC0415 - comes with model-signing

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "signature"
        path.write_bytes(signature)
        try:
            verifier.verify(zip_path, path)
        except (*SIGNATURE_ERRORS, InvalidSignature) as error:
            # of a text that is no signature several lines are said, or a mere name
            is_told = isinstance(error, ValueError) and "\n" not in str(error)
            reason = str(error).strip().rstrip(".") if is_told else "a signature that does not fit, or none"
            raise UserError(
                f"{name or zip_path}: not signed by the holder of {public_key}. Received: {reason}. "
                "Do not use it; ask those who keep the registry."
            ) from error


def _reason(error: Exception) -> str:
    if isinstance(error, AttributeError):  # a key that has no curve
        return "one of another kind"
    return getattr(error, "strerror", None) or str(error)


def _model_signing() -> ModuleType:
    try:
        import model_signing  # noqa: PLC0415 - optional, and its import takes a second
    except ImportError as error:
        raise UserError(f"signatures: need the package model-signing. Received: {error}. Install it.") from error
    return model_signing
