# SPDX-License-Identifier: Apache-2.0
"""Sign zips and indexes and check signatures in the OpenSSF format (package ``model-signing``)."""

from __future__ import annotations

import tempfile
from pathlib import Path
from types import ModuleType

from volseg.errors import UserError

__all__ = ["check_signature", "sign"]

# raised by model-signing for keys that it cannot use
KEY_ERRORS = (OSError, ValueError, TypeError, AttributeError)
# and for invalid or foreign signatures
SIGNATURE_ERRORS = (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError)


def sign(zip_path: Path, private_key: Path) -> bytes:
    """Return the signature of a zip.

    Args:
        zip_path: the zip, which is signed by its SHA-256.
        private_key: PEM file of an elliptic curve key (P-256, P-384 or P-521) without a password.

    Raises:
        UserError: ``model-signing`` is not installed, or the key cannot be used.
    """
    model_signing = _model_signing()
    try:
        signer = model_signing.signing.Config().use_elliptic_key_signer(private_key=private_key)
    except KEY_ERRORS as error:
        raise UserError(
            f"{private_key}: cannot be used as a private key: {_reason(error)}; "
            "give the PEM file of an elliptic curve key without a password"
        ) from error
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "signature"
        signer.sign(zip_path, path)
        return path.read_bytes()


def check_signature(zip_path: Path, signature: bytes, public_key: Path, name: str | None = None) -> None:
    """Check that the holder of a key signed a zip.

    Args:
        zip_path: the zip.
        signature: of the zip.
        public_key: PEM file.
        name: of the zip in errors; by default its path.

    Raises:
        UserError: the signature is invalid, or belongs to another key or zip.
    """
    model_signing = _model_signing()
    try:
        verifier = model_signing.verifying.Config().use_elliptic_key_verifier(public_key=public_key)
    except KEY_ERRORS as error:
        raise UserError(
            f"{public_key}: cannot be used as a public key: {_reason(error)}; "
            "give the PEM file of an elliptic curve key"
        ) from error
    from cryptography.exceptions import InvalidSignature  # noqa: PLC0415 - comes with model-signing

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "signature"
        path.write_bytes(signature)
        try:
            verifier.verify(zip_path, path)
        except (*SIGNATURE_ERRORS, InvalidSignature) as error:
            # for an invalid signature the message has several lines, or is only a key
            is_told = isinstance(error, ValueError) and "\n" not in str(error)
            reason = str(error).strip().rstrip(".") if is_told else "the signature is invalid"
            raise UserError(
                f"{name or zip_path}: not signed by the holder of {public_key}: {reason}; "
                "do not use it, and report this to the registry's maintainers"
            ) from error


def _reason(error: Exception) -> str:
    if isinstance(error, AttributeError):  # a key without a curve
        return "not an elliptic curve key"
    return getattr(error, "strerror", None) or str(error)


def _model_signing() -> ModuleType:
    try:
        import model_signing  # noqa: PLC0415 - optional, and its import takes a second
    except ImportError as error:
        raise UserError(f"signatures need the package model-signing: {error}; install it") from error
    return model_signing
