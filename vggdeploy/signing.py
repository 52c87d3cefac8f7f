"""Signatures of bundles: Ed25519 (RFC 8032) over a bundle's digest, by keys in PEM.

::

    signature.json    {"schema": 1, "signatures": [{"algorithm", "key", "signature"}, ...]}

``key`` is the SHA-256 of the raw public key, in hexadecimal: a signature names its key and does not
bring it along, since who signs must be known before. What is signed is the digest in the manifest,
behind a line that no other kind of message begins with; it covers every file that was built, and
what tuning adds later, which is of one machine, is outside of it.

cryptography is imported where it is used.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import os
import re
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from vggdeploy import atomic, forms, limits
from vggdeploy.errors import BundleError, ConfigError, require_package

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from pathlib import Path

    from cryptography.hazmat.primitives.asymmetric.ed25519 import (
        Ed25519PrivateKey,
        Ed25519PublicKey,
    )

    Keys = Mapping[str, Ed25519PublicKey]

SCHEMA = 1
ALGORITHM = "ed25519"
DOMAIN = b"vggdeploy bundle signature 1\n"
"""What every signed message begins with, so that no signature of something else is one of ours."""

PASSWORD = "VGGDEPLOY_KEY_PASSWORD"
"""The environment variable with the password of a private key, where it has one."""

PUBLIC_SUFFIX = ".pub"
_SUFFIXES = (PUBLIC_SUFFIX, ".pem")
"""What keys end in, in a folder of them."""

_PUBLIC = re.compile(rb"-----BEGIN PUBLIC KEY-----.*?-----END PUBLIC KEY-----", re.DOTALL)
_HEXADECIMAL = re.compile("[0-9a-f]{64}")

_FORM = {
    "schema": lambda said: type(said) is int and said == SCHEMA,
    "signatures": [{"algorithm": str, "key": str, "signature": str}],
}


@dataclass(frozen=True)
class Signature:
    """One signature.

    Attributes:
        key: SHA-256 of the raw public key, hexadecimal.
        signature: 64 bytes, in base64.
        algorithm: ``ed25519``.
    """

    key: str
    signature: str
    algorithm: str = ALGORITHM


def message(digest: str) -> bytes:
    """What is signed of a bundle with a digest."""
    return DOMAIN + digest.encode("ascii")


def generate(path: Path) -> dict[str, Any]:
    """Make a pair of keys: the private one at `path` (PKCS #8, readable by its owner alone, with a
    password where `PASSWORD` is set), the public one beside it as ``<path>.pub``.

    Returns:
        ``private``, ``public`` (their files) and ``key``, its id.

    Raises:
        ConfigError: when one of them is there already, or cannot be written.
        MissingError: without the package cryptography.
    """
    _require()
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    public = path.with_name(path.name + PUBLIC_SUFFIX)
    for place in (path, public):
        if place.exists() or place.is_symlink():
            raise ConfigError(
                f"{place} exists",
                got="a file of that name",
                expected="a free path: no key is replaced",
                fix="choose another --out",
            )
    key, password = Ed25519PrivateKey.generate(), _password()
    encryption = (
        serialization.BestAvailableEncryption(password)
        if password
        else serialization.NoEncryption()
    )
    kind, pem = serialization.PrivateFormat.PKCS8, serialization.Encoding.PEM
    content = key.private_bytes(pem, kind, encryption)
    atomic.write_bytes(path, content, private=True, replace=False)
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    try:
        atomic.write_bytes(public, key.public_key().public_bytes(pem, form), replace=False)
    except BaseException:
        path.unlink()  # what it signs, nobody could check
        raise
    return {
        "kind": "keygen",
        "private": str(path),
        "public": str(public),
        "key": key_id(key.public_key()),
    }


def key_id(public: Ed25519PublicKey) -> str:
    """SHA-256 of a raw public key, hexadecimal."""
    return hashlib.sha256(public.public_bytes_raw()).hexdigest()


def private_key(path: Path) -> Ed25519PrivateKey:
    """Read a private key.

    Raises:
        ConfigError: when it is none, of another kind, or its password is missing or wrong.
        MissingError: without the package cryptography.
    """
    _require()
    from cryptography.exceptions import InternalError, UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    content, password = _read(path), _password()
    encrypted = b"ENCRYPTED" in content
    if encrypted and password is None:
        raise ConfigError(
            f"private key {path} has a password",
            got=f"no {PASSWORD}",
            expected="the password",
            fix=f"set {PASSWORD} in the environment",
        )
    try:
        key = serialization.load_pem_private_key(content, password if encrypted else None)
    except (ValueError, TypeError, UnsupportedAlgorithm, InternalError) as error:
        raise ConfigError(
            f"private key {path} cannot be read",
            got="another password, or no such key" if encrypted else "no private key",
            expected="an Ed25519 key in PEM that 'vggdeploy bundle keygen' made",
            fix=f"check the file{f' and {PASSWORD}' if encrypted else ''}",
        ) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigError(
            f"private key {path} is of another kind",
            got=type(key).__name__.removesuffix("PrivateKey").lstrip("_"),
            expected="Ed25519",
            fix="make one with 'vggdeploy bundle keygen'",
        )
    return key


def trusted_keys(place: Path) -> Keys:
    """Public keys by their ids: of a file, which may hold several, or of the files of a folder that
    end in .pub or .pem.

    Raises:
        ConfigError: when there is none, or something else than Ed25519 public keys.
        MissingError: without the package cryptography.
    """
    _require()
    try:
        found = (
            sorted(file for file in place.iterdir() if file.suffix in _SUFFIXES)
            if place.is_dir()
            else [place]
        )
    except OSError as error:
        raise _unreadable(place, error) from error
    keys = {key_id(key): key for file in found for key in _public_keys(file)}
    if not keys:
        raise ConfigError(
            f"there is no key to trust in {place}",
            got="no public key",
            expected=f"public keys in files that end in {' or '.join(_SUFFIXES)}",
            fix="put the builder's .pub file there",
        )
    return keys


def _public_keys(file: Path) -> list[Ed25519PublicKey]:
    from cryptography.exceptions import InternalError, UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    content = _read(file)
    if b"PRIVATE KEY" in content:
        raise ConfigError(
            f"{file} is a private key",
            got="PEM of a private key",
            expected="public keys: who trusts a bundle need not be able to sign one",
            fix=f"give its {PUBLIC_SUFFIX} file, and keep this one where bundles are built",
        )
    keys = []
    for block in _PUBLIC.findall(content):
        try:
            key = serialization.load_pem_public_key(block)
        except (ValueError, UnsupportedAlgorithm, InternalError) as error:
            raise _unreadable(file, error) from error
        if not isinstance(key, Ed25519PublicKey):
            raise _unreadable(file, "a key of another kind")
        keys.append(key)
    if not keys:
        raise _unreadable(file, "no public key")
    return keys


def add(content: bytes | None, digest: str, key: Ed25519PrivateKey, where: str) -> bytes:
    """The content of ``signature.json`` with a signature added, in the place of an older one of the
    same key.

    Args:
        content: what is there; None for a bundle that has no signature.
        digest: the bundle's.
        key: signs it.
        where: what errors call the bundle.

    Raises:
        BundleError: when what is there cannot be read.
    """
    own = key_id(key.public_key())
    signed = base64.b64encode(key.sign(message(digest))).decode("ascii")
    others = [each for each in parse(content, where) if each.key != own]
    every = sorted([*others, Signature(own, signed)], key=lambda each: each.key)
    said = {"schema": SCHEMA, "signatures": [asdict(each) for each in every]}
    return (json.dumps(said, indent=1) + "\n").encode("ascii")


def parse(content: bytes | None, where: str) -> list[Signature]:
    """The signatures of a bundle; none for None.

    Raises:
        BundleError: when `content` is not what `add` makes.
    """
    if content is None:
        return []
    try:
        said = json.loads(content)
        if (wrong := forms.misfit(said, _FORM)) is not None:
            raise ValueError(wrong)
        found = [Signature(**each) for each in said["signatures"]]
        for each in found:
            if each.algorithm != ALGORITHM or not _HEXADECIMAL.fullmatch(each.key):
                raise ValueError(f"{each.algorithm} by {each.key}")
            base64.b64decode(each.signature, validate=True)
    except (ValueError, TypeError, LookupError, RecursionError, binascii.Error) as error:
        raise BundleError(
            f"the signatures of {where} cannot be read",
            got=error,
            expected="what 'vggdeploy bundle sign' writes",
            fix="copy it again, or delete it and sign again",
        ) from error
    return found


def held(content: bytes | None, digest: str, keys: Keys, where: str) -> dict[str, bool | None]:
    """Whether each signature is of a bundle's digest, by the id of its key; None where that is not
    among `keys`.

    Args:
        content: the bundle's signatures.
        digest: the bundle's.
        keys: as `trusted_keys` gives them.
        where: what errors call the bundle.

    Raises:
        BundleError: as `parse`.
    """
    return {each.key: _holds(each, digest, keys) for each in parse(content, where)}


def _holds(signature: Signature, digest: str, keys: Keys) -> bool | None:
    key = keys.get(signature.key)
    if key is None:
        return None
    from cryptography.exceptions import InvalidSignature

    try:
        key.verify(base64.b64decode(signature.signature), message(digest))
    except InvalidSignature:
        return False
    return True


def require(manifest: Mapping[str, Any], content: bytes | None, trusted: Path, where: str) -> str:
    """Make sure that a bundle is signed by a key that is trusted.

    Args:
        manifest: the bundle's, checked against its own digest.
        content: its signatures.
        trusted: as `trusted_keys` takes it.
        where: what errors call the bundle.

    Returns:
        The id of a key whose signature holds.

    Raises:
        BundleError: when there is none.
        ConfigError, MissingError: as `trusted_keys`.
    """
    keys = trusted_keys(trusted)
    return require_held(held(content, manifest["digest"], keys, where), keys, manifest, where)


def require_held(
    said: Mapping[str, bool | None],
    keys: Collection[str],
    manifest: Mapping[str, Any],
    where: str,
) -> str:
    """Make sure that one of a bundle's signatures holds.

    Args:
        said: of the signatures, as `held` gives it.
        keys: ids of those that are trusted.
        manifest: its digest, and whether it was compiled from another bundle.
        where: what errors call the bundle.

    Returns:
        The id of a key whose signature holds.

    Raises:
        BundleError: when there is none.
    """
    for key, holds in said.items():
        if holds:
            return key
    wrong = [key for key, holds in said.items() if holds is False]
    if wrong:
        raise BundleError(
            f"the signature of {where} does not hold",
            got=f"a signature of something else under the trusted key {wrong[0][:16]}...",
            expected=f"one of digest {manifest['digest'][:16]}...",
            fix="do not use this bundle; get it again from its builder",
        )
    here = "'vggdeploy bundle sign' where it was compiled, with a key that is trusted"
    raise BundleError(
        f"{where} is {'signed by no trusted key' if said else 'not signed'}",
        got=", ".join(f"{key[:16]}..." for key in said) or None,
        expected=f"a signature by {' or '.join(f'{key[:16]}...' for key in keys)}",
        fix=here if manifest.get("compiled_from") else "get a signed bundle from its builder",
    )


def _require() -> None:
    require_package("cryptography", "sign", "a signature")


def _password() -> bytes | None:
    said = os.environ.get(PASSWORD)
    if said == "":
        raise ConfigError(
            f"{PASSWORD} is empty",
            got="a variable that is set, to nothing",
            expected="a password",
            fix="set it, or unset it for a key without one",
        )
    return said.encode() if said else None


def _read(path: Path) -> bytes:
    try:
        return limits.read(path, limits.KEY_BYTES)
    except (OSError, limits.OverLimitError) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, got: object) -> ConfigError:
    return ConfigError(
        f"key {path} cannot be read",
        got=got,
        expected="an Ed25519 key in PEM, as 'vggdeploy bundle keygen' writes",
        fix="check the path",
    )
