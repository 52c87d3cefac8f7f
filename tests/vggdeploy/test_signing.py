"""Signatures: who built a bundle is known before anything of it is parsed."""

import base64
import hashlib
import json
import os
import stat
import threading
import zipfile

import pytest
from small_bundle import FACTS, fill, rewrite

from vggdeploy import atomic, bundle, inspection, packing, signing, tuning
from vggdeploy.cli import main
from vggdeploy.contracts import Settings
from vggdeploy.errors import BundleError, ConfigError
from vggdeploy.manifest import (
    MANIFEST,
    SIGNATURES,
    TABLE,
    TUNED,
    files,
    read_manifest,
    spelling,
    tuned_digest,
)

pytest.importorskip("cryptography")

# RFC 8032, 7.1, test 1: the raw private key and the public key that belongs to it.
SECRET = "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60"
PUBLIC = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"


@pytest.fixture
def path(tmp_path):
    bundle.write(tmp_path / "bundle", FACTS, fill, replace=False)
    return tmp_path / "bundle"


@pytest.fixture
def keys(tmp_path):
    """Two pairs: the builder's and a stranger's."""
    for name in ("builder", "stranger"):
        signing.generate(tmp_path / "keys" / name)
    return tmp_path / "keys"


def trusted(keys, name="builder"):
    return keys / f"{name}.pub"


def pem(text, kind):
    return f"-----BEGIN {kind}-----\n{text}\n-----END {kind}-----\n"


def test_keys_and_signatures_are_those_of_the_rfc(tmp_path):
    """The PEM's DER prefixes are RFC 8410's, section 10; the signature is checked apart from this
    module, over the very bytes that the format's description names."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    private = bytes.fromhex("302e020100300506032b657004220420" + SECRET)
    public = bytes.fromhex("302a300506032b6570032100" + PUBLIC)
    (tmp_path / "k").write_text(pem(base64.b64encode(private).decode(), "PRIVATE KEY"))
    (tmp_path / "k.pub").write_text(pem(base64.b64encode(public).decode(), "PUBLIC KEY"))
    key = signing.private_key(tmp_path / "k")
    (found,) = signing.trusted_keys(tmp_path / "k.pub")
    assert signing.key_id(key.public_key()) == found
    assert found == "21fe31dfa154a261626bf854046fd2271b7bed4b6abe45aa58877ef47f9721b9"
    said = json.loads(signing.add(None, "ab" * 32, key, "x"))["signatures"]
    assert [each["key"] for each in said] == [found]
    Ed25519PublicKey.from_public_bytes(bytes.fromhex(PUBLIC)).verify(
        base64.b64decode(said[0]["signature"]),
        b"vggdeploy bundle signature 1\n" + b"ab" * 32,
    )


def test_a_signed_bundle_is_opened(path, keys):
    before = bundle.open_bundle(path).manifest
    result = bundle.sign(path, keys / "builder")
    assert bundle.open_bundle(path, trusted(keys)).manifest == before
    assert result["digest"] == before["digest"]
    assert result["signatures"] == [result["key"]]


def test_an_unsigned_bundle_is_refused(path, keys):
    with pytest.raises(
        BundleError, match=r"is not signed: got nothing, expected a signature by [0-9a-f]{16}"
    ):
        bundle.open_bundle(path, trusted(keys))


def test_a_strangers_signature_is_refused(path, keys):
    bundle.sign(path, keys / "stranger")
    with pytest.raises(BundleError, match=r"signed by no trusted key: got [0-9a-f]{16}"):
        bundle.open_bundle(path, trusted(keys))


def test_one_of_several_signatures_is_enough(path, keys):
    for name in ("stranger", "builder", "builder"):
        bundle.sign(path, keys / name)
    assert len(signing.parse(bundle.signatures(path), "x")) == 2
    for place in (trusted(keys), trusted(keys, "stranger"), keys):
        bundle.open_bundle(path, place)


def test_a_signature_of_another_bundle_is_refused(path, keys):
    bundle.sign(path, keys / "builder")
    rewrite(path, target="ov-fp32")
    with pytest.raises(BundleError, match=r"does not hold.*do not use this bundle"):
        bundle.open_bundle(path, trusted(keys))


def test_a_signature_moved_to_another_bundle_is_refused(path, keys, tmp_path):
    bundle.sign(path, keys / "builder")
    bundle.write(tmp_path / "other", {**FACTS, "build": {"key": "k2"}}, fill, replace=False)
    (path / SIGNATURES).rename(tmp_path / "other" / SIGNATURES)
    with pytest.raises(BundleError, match="does not hold"):
        bundle.open_bundle(tmp_path / "other", trusted(keys))


def test_a_strangers_signature_under_the_builders_name_is_refused(path, keys):
    bundle.sign(path, keys / "stranger")
    (own,) = signing.trusted_keys(trusted(keys))
    file = path / SIGNATURES
    said = json.loads(file.read_text())
    said["signatures"][0]["key"] = own
    file.write_text(json.dumps(said))
    with pytest.raises(BundleError, match="does not hold"):
        bundle.open_bundle(path, trusted(keys))


def test_a_signature_of_something_else_is_none_of_a_bundle(path, keys):
    """The digest alone, as another tool might sign it."""
    key, digest = signing.private_key(keys / "builder"), read_manifest(path)["digest"]
    said = json.loads(signing.add(None, digest, key, "x"))
    said["signatures"][0]["signature"] = base64.b64encode(key.sign(digest.encode())).decode()
    (path / SIGNATURES).write_text(json.dumps(said))
    with pytest.raises(BundleError, match="does not hold"):
        bundle.open_bundle(path, trusted(keys))


def test_no_flipped_bit_of_a_signature_holds(path, keys):
    bundle.sign(path, keys / "builder")
    file = path / SIGNATURES
    whole = file.read_bytes()
    for place in range(len(whole)):
        content = bytearray(whole)
        content[place] ^= 1 << (place % 7)
        file.write_bytes(content)
        try:
            bundle.open_bundle(path, trusted(keys))
        except BundleError:
            continue
        # Blanks may change, and the bits of base64 that no byte has.
        said, before = json.loads(content), json.loads(whole)
        assert said["signatures"][0]["key"] == before["signatures"][0]["key"]
        assert base64.b64decode(said["signatures"][0]["signature"]) == base64.b64decode(
            before["signatures"][0]["signature"]
        )


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"{}", b"\xff", b"[" * 60_000, b'{"schema": 2, "signatures": []}',
     b'{"schema": 1, "signatures": [1]}', b'{"schema": 1, "signatures": [{"key": "a"}]}',
     b'{"schema": 1, "signatures": [{"key": 1, "signature": 2, "algorithm": "ed25519"}]}',
     b'{"schema": 1, "signatures": [{"key": "' + b"a" * 64 + b'", "signature": "", "algorithm": '
     b'"rsa"}]}',
     b"x" * (1 << 16) + b"x"],
)  # fmt: skip
def test_signatures_that_are_none_are_refused(path, keys, content):
    (path / SIGNATURES).write_bytes(content)
    with pytest.raises(BundleError, match=r"cannot be read: got .*delete it|bytes") as caught:
        bundle.open_bundle(path, trusted(keys))
    assert "indices" not in str(caught.value)
    bundle.open_bundle(path)  # nobody asked
    with pytest.raises(BundleError, match="cannot be read"):
        bundle.sign(path, keys / "builder")
    (path / SIGNATURES).unlink()  # what the error says
    bundle.sign(path, keys / "builder")
    bundle.open_bundle(path, trusted(keys))


def test_what_is_signed_is_whole_and_what_is_checked_too(path, keys):
    bundle.sign(path, keys / "builder")
    (path / "model.bin").write_bytes(bytes(256))
    with pytest.raises(BundleError, match=r"model\.bin has been altered"):
        bundle.open_bundle(path, trusted(keys))
    with pytest.raises(BundleError, match=r"model\.bin has been altered"):
        bundle.sign(path, keys / "builder")


def test_a_signature_survives_tuning(path, keys):
    bundle.sign(path, keys / "builder")
    place = tuning.Place("CPU", "Some CPU", 2)
    choice = tuning.Choice("latency", 1, Settings(streams=1), place, "openvino 1")
    tuning.record(bundle.open_bundle(path), choice, {"kind": "tune"})
    opened = bundle.open_bundle(path, trusted(keys))
    assert tuning.choices(opened) == [choice]


@pytest.fixture
def beside(monkeypatch):
    """Starts something beside the first signing, when that has read what there is."""
    real = signing.add

    def start(work):
        other = threading.Thread(target=work)

        def add(*given):
            if other.ident is None:
                other.start()
                other.join(timeout=0.3)
            return real(*given)

        monkeypatch.setattr(signing, "add", add)
        return other

    return start


def test_two_who_sign_at_once_lose_nothing(path, keys, beside):
    other = beside(lambda: bundle.sign(path, keys / "stranger"))
    bundle.sign(path, keys / "builder")
    other.join(timeout=60)
    for name in ("builder", "stranger"):
        bundle.open_bundle(path, trusted(keys, name))


def test_signing_beside_tuning_loses_nothing(path, keys, monkeypatch):
    """It begins when tuning has copied what there is, and not yet put it in place."""
    place = tuning.Place("CPU", "Some CPU", 2)
    choice = tuning.Choice("latency", 1, Settings(streams=1), place, "openvino 1")
    real, other = (
        tuning.spelling,
        threading.Thread(target=bundle.sign, args=[path, keys / "builder"]),
    )

    def late(manifest):
        other.start()
        other.join(timeout=0.3)
        return real(manifest)

    monkeypatch.setattr(tuning, "spelling", late)
    tuning.record(bundle.open_bundle(path), choice, {"kind": "tune"})
    other.join(timeout=60)
    assert tuning.choices(bundle.open_bundle(path, trusted(keys))) == [choice]


def test_a_bundle_that_was_replaced_meanwhile_is_not_signed(path, keys, monkeypatch):
    alone = atomic.alone

    def late(file):
        bundle.write(path, {**FACTS, "build": {"key": "k2"}}, fill, replace=True)
        return alone(file)

    monkeypatch.setattr(atomic, "alone", late)
    with pytest.raises(BundleError, match="was replaced in the meantime"):
        bundle.sign(path, keys / "builder")
    assert not (path / SIGNATURES).exists()


def test_a_bundle_that_is_replaced_later_does_not_get_its_signature(path, keys, beside):
    facts = {**FACTS, "build": {"key": "k2"}}
    other = beside(lambda: bundle.write(path, facts, fill, replace=True))
    bundle.sign(path, keys / "builder")
    other.join(timeout=60)
    assert bundle.open_bundle(path).manifest["build"]["key"] == "k2"
    assert not (path / SIGNATURES).exists()


def test_a_signature_survives_packing(path, keys, tmp_path):
    bundle.sign(path, keys / "builder")
    packing.pack(path, tmp_path / "b.zip")
    packing.unpack(tmp_path / "b.zip", tmp_path / "out", trusted=trusted(keys))
    bundle.open_bundle(tmp_path / "out", trusted(keys))
    with pytest.raises(BundleError, match="signed by no trusted key"):
        packing.unpack(tmp_path / "b.zip", tmp_path / "no", trusted=trusted(keys, "stranger"))
    assert not (tmp_path / "no").exists()


def test_an_engine_that_was_compiled_here_is_to_be_signed_here(path, keys):
    rewrite(path, compiled_from="0" * 64)
    with pytest.raises(BundleError, match=r"not signed.* -- 'vggdeploy bundle sign' where it was"):
        bundle.open_bundle(path, trusted(keys))


def tune(path, listed):
    """Say in a manifest that tuning added these files, as anyone can: no key is asked for it."""
    manifest = json.loads((path / MANIFEST).read_text())
    tuned = {"choices": [], "files": listed}
    manifest[TUNED] = {**tuned, "digest": tuned_digest(manifest["digest"], tuned)}
    (path / MANIFEST).write_text(spelling(manifest))


@pytest.mark.parametrize("others", [(), (TABLE,)])
def test_what_tuning_adds_is_no_engine(path, keys, tmp_path, others):
    """The signed digest leaves tuning out: it must not stand in for a file that was signed."""
    bundle.sign(path, keys / "builder")
    packing.pack(path, tmp_path / "b.zip")
    for name in (TABLE, "model.bin"):
        (path / name).write_bytes(b"evil")
    said = {"size": 4, "sha256": hashlib.sha256(b"evil").hexdigest()}
    tune(path, dict.fromkeys(("model.bin", *others), said))
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
        for name in (MANIFEST, SIGNATURES, *files(json.loads((path / MANIFEST).read_text()))):
            archive.write(path / name, name)
    for use in (
        lambda: bundle.open_bundle(path, trusted(keys)),
        lambda: inspection.inspect(path, trusted=trusted(keys)),
        lambda: inspection.inspect(tmp_path / "b.zip", trusted=trusted(keys)),
        lambda: packing.unpack(tmp_path / "b.zip", tmp_path / "out", trusted=trusted(keys)),
    ):
        with pytest.raises(BundleError, match=r"tuning has other files: got model\.bin"):
            use()
    assert not (tmp_path / "out").exists()


def test_tuning_adds_its_table(path, keys):
    bundle.sign(path, keys / "builder")
    (path / TABLE).write_bytes(b"evil")
    tune(path, {TABLE: {"size": 4, "sha256": hashlib.sha256(b"evil").hexdigest()}})
    bundle.open_bundle(path, trusted(keys))


@pytest.mark.parametrize("name", [MANIFEST, SIGNATURES])
def test_what_lies_elsewhere_is_not_passed_on(path, keys, tmp_path, name):
    bundle.sign(path, keys / "builder")
    (path / name).rename(tmp_path / "secret")
    (path / name).symlink_to(tmp_path / "secret")
    for use in (
        lambda: bundle.open_bundle(path),
        lambda: bundle.open_bundle(path, trusted(keys)),
        lambda: bundle.sign(path, keys / "builder"),
        lambda: inspection.inspect(path),
        lambda: packing.pack(path, tmp_path / "b.zip"),
    ):
        with pytest.raises(BundleError, match=f"{name} points outside of it"):
            use()
    assert not (tmp_path / "b.zip").exists()


# Keys.


def test_a_private_key_is_its_owners_alone(tmp_path):
    mask = os.umask(0)
    try:
        signing.generate(tmp_path / "k")
    finally:
        os.umask(mask)
    assert stat.S_IMODE((tmp_path / "k").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "k.pub").stat().st_mode) == 0o666
    assert (tmp_path / "k").read_bytes().startswith(b"-----BEGIN PRIVATE KEY-----")
    assert (tmp_path / "k.pub").read_bytes().startswith(b"-----BEGIN PUBLIC KEY-----")


@pytest.mark.parametrize("there", ["k", "k.pub"])
def test_no_key_is_replaced(tmp_path, there):
    (tmp_path / there).write_text("dear")
    with pytest.raises(ConfigError, match="exists"):
        signing.generate(tmp_path / "k")
    assert [file.name for file in tmp_path.iterdir()] == [there]


@pytest.mark.parametrize("there", ["k", "k.pub"])
def test_no_key_is_replaced_that_came_in_the_meantime(tmp_path, monkeypatch, there):
    password = signing._password

    def late():
        (tmp_path / there).write_text("dear")
        return password()

    monkeypatch.setattr(signing, "_password", late)
    with pytest.raises(ConfigError, match=f"{there} cannot be written: got File exists"):
        signing.generate(tmp_path / "k")
    assert (tmp_path / there).read_text() == "dear"
    assert [file.name for file in tmp_path.iterdir()] == [there]


def test_a_private_key_is_never_trusted(path, keys, tmp_path):
    bundle.sign(path, keys / "builder")
    with pytest.raises(ConfigError, match=r"is a private key.*\.pub"):
        bundle.open_bundle(path, keys / "builder")
    (keys / "builder").rename(keys / "builder.pem")
    with pytest.raises(ConfigError, match="is a private key"):
        bundle.open_bundle(path, keys)


def test_a_file_may_hold_several_keys(path, keys, tmp_path):
    both = tmp_path / "both.pub"
    both.write_bytes(trusted(keys).read_bytes() + trusted(keys, "stranger").read_bytes())
    assert len(signing.trusted_keys(both)) == 2


def test_a_password_that_is_set_to_nothing_is_none(tmp_path, monkeypatch):
    monkeypatch.setenv(signing.PASSWORD, "")
    with pytest.raises(ConfigError, match="is empty: got a variable that is set, to nothing"):
        signing.generate(tmp_path / "key")
    assert not list(tmp_path.iterdir())


def test_a_key_with_a_password_needs_it(path, keys, tmp_path, monkeypatch):
    monkeypatch.setenv(signing.PASSWORD, "open sesame")
    signing.generate(tmp_path / "k")
    bundle.sign(path, tmp_path / "k")
    bundle.sign(path, keys / "builder")  # which has none
    bundle.open_bundle(path, tmp_path / "k.pub")
    monkeypatch.setenv(signing.PASSWORD, "wrong")
    with pytest.raises(ConfigError, match=f"another password.*{signing.PASSWORD}"):
        bundle.sign(path, tmp_path / "k")
    monkeypatch.delenv(signing.PASSWORD)
    with pytest.raises(ConfigError, match=f"has a password: got no {signing.PASSWORD}"):
        bundle.sign(path, tmp_path / "k")
    with pytest.raises(ConfigError, match="is a private key"):
        bundle.open_bundle(path, tmp_path / "k")


def other_key(private):
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    if private:
        return key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    return key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


@pytest.mark.parametrize(
    "content",
    [b"", b"no key", pem("AAAA", "PUBLIC KEY").encode(), pem("!", "PUBLIC KEY").encode(), None,
     b"x" * ((1 << 16) + 1)],
)  # fmt: skip
def test_what_is_no_public_key_is_refused(path, tmp_path, content):
    (tmp_path / "k.pub").write_bytes(other_key(private=False) if content is None else content)
    for place in (tmp_path / "k.pub", tmp_path):
        with pytest.raises(ConfigError, match="cannot be read") as caught:
            bundle.open_bundle(path, place)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"no key", pem("AAAA", "PRIVATE KEY").encode(), None])
def test_what_is_no_private_key_is_refused(path, tmp_path, content):
    (tmp_path / "k").write_bytes(other_key(private=True) if content is None else content)
    with pytest.raises(ConfigError, match=r"cannot be read|of another kind"):
        bundle.sign(path, tmp_path / "k")
    assert not (path / SIGNATURES).exists()


def test_a_place_without_keys_trusts_nobody(path, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="no key to trust"):
        bundle.open_bundle(path, tmp_path / "empty")
    with pytest.raises(ConfigError, match="cannot be read"):
        bundle.open_bundle(path, tmp_path / "nowhere")


# Commands.

COMMANDS = ["verify", "bench", "tune", "compile", "gate"]


@pytest.fixture
def engines(monkeypatch):
    """Fails the test where a target is so much as asked for."""
    from vggdeploy import targets

    def parsed(*_):
        raise AssertionError("a target was asked for")

    monkeypatch.setattr(targets, "get", parsed)


@pytest.mark.parametrize("sign", [None, "stranger"])
@pytest.mark.parametrize("command", COMMANDS)
def test_no_command_comes_to_an_engine_of_a_stranger(
    path, keys, command, sign, engines, capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    if sign:
        bundle.sign(path, keys / sign)
    assert main([command, str(path), "--trusted-keys", str(trusted(keys))]) == 2
    assert ("signed by no trusted key" if sign else "is not signed") in capsys.readouterr().err


@pytest.mark.parametrize("command", COMMANDS)
def test_a_setting_stands_in_for_the_flag(
    path, keys, command, engines, capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "vggdeploy.toml").write_text(f'trusted_keys = "{trusted(keys)}"\n')
    assert main([command, str(path)]) == 2
    assert "is not signed" in capsys.readouterr().err


def test_the_other_side_of_a_comparison_is_checked_too(
    path, keys, engines, capsys, tmp_path, monkeypatch
):
    monkeypatch.setattr("vggdeploy.speed.native", lambda *_: None)
    monkeypatch.setattr("vggdeploy.benching.with_tuned", lambda *_: (None, {}))
    monkeypatch.setattr("vggdeploy.benching._outline", lambda *_: {})
    bundle.sign(path, keys / "builder")
    bundle.write(tmp_path / "other", FACTS, fill, replace=False)
    flags = ["--against", str(tmp_path / "other"), "--trusted-keys", str(trusted(keys))]
    assert main(["bench", str(path), *flags]) == 2
    assert f"bundle {tmp_path / 'other'} is not signed" in capsys.readouterr().err.replace("\n", "")


def test_settings_reach_the_commands_of_a_group(path, keys, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    packing.pack(path, tmp_path / "b.zip")
    (tmp_path / "vggdeploy.toml").write_text(f'[bundle]\ntrusted_keys = "{trusted(keys)}"\n')
    assert main(["bundle", "unpack", "b.zip", "--out", "out"]) == 2
    assert "is not signed" in capsys.readouterr().err
    assert main(["bundle", "inspect", "b.zip"]) == 2
    assert main(["bundle", "sign", str(path), "--key", str(keys / "builder")]) == 0
    assert main(["bundle", "pack", str(path), "--out", "b.zip", "--force"]) == 0
    assert main(["bundle", "unpack", "b.zip", "--out", "out"]) == 0
    assert main(["bundle", "inspect", "b.zip"]) == 0
    (tmp_path / "vggdeploy.toml").write_text("[bundle]\ntrusted_key = 1\n")
    assert main(["bundle", "inspect", "b.zip"]) == 2
    assert "perhaps 'trusted_keys'" in capsys.readouterr().err


def test_keygen_and_sign_say_what_they_did(path, tmp_path, capsys):
    assert main(["bundle", "keygen", "--out", str(tmp_path / "k"), "--json", "-"]) == 0
    made = json.loads(capsys.readouterr().out)
    arguments = ["bundle", "sign", str(path), "--key", str(tmp_path / "k"), "--json", "-"]
    assert main(arguments) == 0
    assert json.loads(capsys.readouterr().out)["key"] == made["key"]
    assert main(["bundle", "keygen", "--out", str(tmp_path / "k")]) == 2


def test_a_key_of_another_curve_in_so_many_bytes_is_refused(keys, tmp_path):
    """OpenSSL itself does not know what is wrong with an Ed25519 key that says it is of Ed448."""
    for name in ("builder", "builder.pub"):
        head, *body, tail = (keys / name).read_text().splitlines()
        der = base64.b64decode("".join(body)).replace(
            bytes.fromhex("2b6570"), bytes.fromhex("2b6571")
        )
        path = tmp_path / name
        path.write_text("\n".join([head, base64.b64encode(der).decode(), tail, ""]))
        with pytest.raises(ConfigError, match=r"cannot be read|is of another kind"):
            (signing.trusted_keys if name.endswith("pub") else signing.private_key)(path)
