"""Keys and signatures: who signed is certain, and not one byte of a signed artifact may differ unnoticed."""

import base64
import io
import json
import os
import random
import shutil
import stat
import subprocess
import zipfile
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from targets.runtime import artifact, container, signing
from targets.runtime.errors import HighwallError
from targets.runtime.manifest import to_json
from targets.runtime.signing import PublicKey, Signature, SigningKey

WHERE = "mine.highwall"
ANN, BOB = SigningKey("ann", bytes(range(32))), SigningKey("bob", b"\x07" * 32)


@pytest.fixture(scope="module")
def signed(classifier):
    return artifact.encode(*classifier.all, key=ANN)


def refused(data: bytes) -> str:
    with pytest.raises(HighwallError) as caught:
        artifact.decode(data, WHERE)
    message = str(caught.value)
    assert message.startswith(WHERE)
    assert "\n" not in message
    return message


def complaint(function, *arguments) -> str:
    with pytest.raises(HighwallError) as caught:
        function(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def with_signature(data: bytes, **changes) -> bytes:
    """The artifact with keys of its signature.json changed (None: removed), the zip made whole again."""
    members = container.unpack(data, WHERE)
    stated = json.loads(members["signature.json"]) | changes
    members["signature.json"] = to_json({key: value for key, value in stated.items() if value is not None}, "test")
    return container.pack(members)


# --- signing an artifact --------------------------------------------------------------------------------


def test_a_signature_is_read_back_and_the_same_inputs_and_key_give_the_same_bytes(tmp_path, classifier, signed):
    for name in ("a", "b"):
        artifact.write(tmp_path / f"{name}.highwall", *classifier.all, key=ANN)
        assert (tmp_path / f"{name}.highwall").read_bytes() == signed
    found = artifact.read(tmp_path / "a.highwall")
    assert found.signer == ANN.public
    assert found.digests == artifact.decode(artifact.encode(*classifier.all), WHERE).digests
    assert list(found.sizes)[-2:] == ["digests.json", "signature.json"]


def test_an_unsigned_artifact_has_no_signer_and_no_other_bytes_than_before_signatures(classifier):
    found = artifact.decode(artifact.encode(*classifier.all), WHERE)
    assert found.signature is found.signer is None
    assert "signature.json" not in found.sizes


def test_anyone_can_check_the_signature_without_highwall(signed):
    with zipfile.ZipFile(io.BytesIO(signed)) as file:
        stated = json.loads(file.read("signature.json"))
        message = file.read("digests.json")
    public = Ed25519PublicKey.from_public_bytes(base64.b64decode(stated["public"]))
    public.verify(base64.b64decode(stated["signature"]), message)
    assert (stated["algorithm"], stated["name"]) == ("ed25519", "ann")


def test_signing_a_file_gives_the_bytes_a_signed_build_would_have(tmp_path, classifier, signed):
    path = classifier.write(tmp_path / "a.highwall")
    assert artifact.sign(path, BOB) is None
    before = artifact.sign(path, ANN)
    assert before is not None
    assert before.key == BOB.public
    assert path.read_bytes() == signed
    assert [found.name for found in tmp_path.iterdir()] == ["a.highwall"]


def test_a_damaged_artifact_is_not_signed_and_stays_as_it_was(tmp_path, signed):
    path = tmp_path / "a.highwall"
    damaged = signed[:500] + b"?" + signed[501:]
    path.write_bytes(damaged)
    with pytest.raises(HighwallError, match="damaged"):
        artifact.sign(path, BOB)
    assert path.read_bytes() == damaged


# --- every change is refused ----------------------------------------------------------------------------


def test_every_byte_of_a_signed_artifact_flipped_is_refused(signed):
    assert len(signed) > 2000
    chance = random.Random(7)
    for place in range(len(signed)):
        damaged = bytearray(signed)
        damaged[place] ^= 1 << chance.randrange(8)
        refused(bytes(damaged))


def test_flipped_bytes_whose_checksums_were_mended_are_refused_but_for_the_label_nobody_vouches_for(signed):
    members = container.unpack(signed, WHERE)
    chance = random.Random(8)
    accepted = set()
    for name, member in members.items():
        for place in chance.sample(range(len(member)), min(len(member), 400)):
            changed = bytearray(member)
            changed[place] ^= 1 << chance.randrange(7)
            forged = container.pack({**members, name: bytes(changed)})
            try:
                accepted.add((name, artifact.decode(forged, WHERE).signer.name))
            except HighwallError as error:
                assert str(error).startswith(WHERE)
    assert {name for name, _ in accepted} <= {"signature.json"}
    assert all(len(label) == 3 for _, label in accepted)


NAMES = ["manifest.json", "model.onnx", "golden.npz", "receipt.json", "digests.json", "signature.json"]


@pytest.mark.parametrize("name", NAMES)
def test_a_renamed_altered_or_added_member_is_named(signed, name):
    members = container.unpack(signed, WHERE)
    assert list(members) == NAMES
    renamed = {("x" + key if key == name else key): value for key, value in members.items()}
    assert name in refused(container.pack(renamed))
    assert name in refused(container.pack({**members, name: members[name] + b" "}))
    assert "extra.txt" in refused(container.pack({**members, "extra.txt": b"hello"}))
    assert "extra.txt" in refused(container.pack({"extra.txt": b"hello", **members}))


@pytest.mark.parametrize("name", NAMES[:-1])
def test_a_removed_member_is_named(signed, name):
    members = container.unpack(signed, WHERE)
    assert name in refused(container.pack({key: value for key, value in members.items() if key != name}))


def test_with_the_signature_removed_it_is_unsigned_and_nothing_else(signed, classifier):
    members = container.unpack(signed, WHERE)
    members.pop("signature.json")
    assert container.pack(members) == artifact.encode(*classifier.all)


def test_contents_changed_with_digests_to_match_are_not_what_was_signed(signed, classifier):
    other = artifact.encode(replace(classifier.manifest, threshold=0.01), *classifier.all[1:])
    members = container.unpack(other, WHERE)
    members["signature.json"] = container.unpack(signed, WHERE)["signature.json"]
    assert "key ann did not sign these contents" in refused(container.pack(members))


def test_the_signature_of_another_artifact_is_refused(signed, segmenter):
    members = container.unpack(artifact.encode(*segmenter.all, key=ANN), WHERE)
    members["signature.json"] = container.unpack(signed, WHERE)["signature.json"]
    assert "did not sign" in refused(container.pack(members))


def test_another_key_cannot_be_put_in_place_of_the_signer_s(signed):
    stated = base64.b64encode(BOB.public.raw).decode()
    assert "did not sign" in refused(with_signature(signed, public=stated))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"algorithm": "ed448"}, "upgrade"),
        ({"algorithm": None}, "algorithm"),
        ({"algorithm": ["ed25519"]}, "upgrade"),
        ({"name": None}, "key name is missing"),
        ({"name": ""}, "name is ''"),
        ({"name": "two\nlines"}, "name is 'two\\nlines'"),
        ({"name": 7}, "name is 7"),
        ({"date": "2026-01-01"}, "key date is unknown"),
        ({"public": "AAAA"}, "public is not 32 bytes"),
        ({"public": 3}, "public is not 32 bytes"),
        ({"public": "ä" * 44}, "public is not 32 bytes"),
        ({"public": base64.b64encode(b"\xff" * 32).decode()}, "did not sign"),
        ({"signature": base64.b64encode(b"\0" * 64).decode()}, "did not sign"),
        ({"signature": base64.b64encode(b"\0" * 63).decode()}, "signature is not 64 bytes"),
        ({"signature": "x" * 70_000}, "a few hundred"),
    ],
)
def test_a_malformed_signature_is_damage_and_named(signed, changes, says):
    message = refused(with_signature(signed, **changes))
    assert "signature.json" in message
    assert says in message
    assert len(message) < 300


@pytest.mark.parametrize("text", [b"", b"[]\n", b"{", b"null", b"\xff", b"[" * 9999])
def test_a_signature_that_is_no_json_object_is_refused(signed, text):
    members = container.unpack(signed, WHERE)
    assert "signature.json" in refused(container.pack({**members, "signature.json": text}))


def test_a_second_spelling_of_the_same_signature_is_refused(signed):
    """Base64 ignores spare bits and a multiple of the group order may be added to Ed25519's second half."""
    stated = json.loads(container.unpack(signed, WHERE)["signature.json"])["signature"]
    last = stated[-3]
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    respelled = f"{stated[:-3]}{alphabet[alphabet.index(last) ^ 1]}=="
    assert base64.b64decode(respelled) == base64.b64decode(stated)
    assert "64 bytes" in refused(with_signature(signed, signature=respelled))
    raw, order = base64.b64decode(stated), 2**252 + 27742317777372353535851937790883648493
    second = (int.from_bytes(raw[32:], "little") + order).to_bytes(32, "little")
    assert "did not sign" in refused(with_signature(signed, signature=base64.b64encode(raw[:32] + second).decode()))


def test_a_newer_schema_says_to_upgrade_even_when_signed(signed):
    members = container.unpack(signed, WHERE)
    raw = json.loads(members["manifest.json"]) | {"schema": 2}
    members = {name: members[name] for name in NAMES[:4]} | {"manifest.json": to_json(raw, "test")}
    members["digests.json"] = artifact._encode_digests(artifact._digests(members))
    assert "upgrade" in refused(artifact._pack(members, ANN))


@pytest.mark.parametrize("name", ["../signature.json", "/etc/passwd", "a/../../b", "..\\x"])
def test_a_signed_zip_with_a_path_outside_is_refused(signed, name):
    with zipfile.ZipFile(stream := io.BytesIO(), "w") as file:
        for key, value in {**container.unpack(signed, WHERE), name: b"x"}.items():
            file.writestr(key, value)
    assert "which no artifact has" in refused(stream.getvalue())


@pytest.mark.parametrize("name", NAMES)
def test_a_bomb_in_any_member_is_refused_before_it_is_unpacked(signed, name):
    with zipfile.ZipFile(stream := io.BytesIO(), "w") as file:
        for key, value in container.unpack(signed, WHERE).items():
            bomb = key == name
            method = zipfile.ZIP_DEFLATED if bomb else zipfile.ZIP_STORED
            file.writestr(key, b"\0" * 5_000_000 if bomb else value, method)
    assert "compressed" in refused(stream.getvalue())


def test_a_bomb_inside_the_golden_vectors_is_refused_though_signed(signed):
    with zipfile.ZipFile(bomb := io.BytesIO(), "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("seeds.npy", b"\0" * 5_000_000)
    members = {name: container.unpack(signed, WHERE)[name] for name in NAMES[:4]} | {"golden.npz": bomb.getvalue()}
    members["digests.json"] = artifact._encode_digests(artifact._digests(members))
    assert "golden.npz" in refused(artifact._pack(members, ANN))


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_signed_artifact_cut_short_added_to_or_shuffled_is_refused(signed, choice):
    size = len(signed)
    a, b, c = sorted(choice.draw(st.lists(st.integers(0, size), min_size=3, max_size=3)))
    noise = choice.draw(st.binary(min_size=1, max_size=40))
    cut, put, swap = signed[:a], signed[:a] + noise + signed[a:], signed[:a] + signed[b:c] + signed[a:b] + signed[c:]
    twice = signed[:a] + signed[a:b] * 2 + signed[b:]
    for changed in (cut, put, swap, twice):
        if changed != signed:
            refused(changed)


@settings(max_examples=60, deadline=None)
@given(st.permutations(NAMES))
def test_members_in_another_order_are_refused(signed, order):
    members = container.unpack(signed, WHERE)
    if order != NAMES:
        assert "order" in refused(container.pack({name: members[name] for name in order}))


@given(st.binary(max_size=64), st.binary(max_size=64))
def test_a_signature_holds_for_its_own_message_and_key_alone(first, second):
    signature = ANN.sign(first)
    assert signature.matches(first)
    assert signature.matches(second) == (first == second)
    assert not Signature(BOB.public, signature.value).matches(first)


# --- key files ------------------------------------------------------------------------------------------


@pytest.fixture
def pair(tmp_path):
    signing.write_pair(tmp_path / "ann", "ann")
    return tmp_path / "ann.key", tmp_path / "ann.pub"


def test_a_key_pair_works_and_only_its_owner_may_read_the_private_half(pair):
    key, pub = pair
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    private, public = signing.load_private(key), signing.parse_public(pub.read_text(), "x")
    assert private.public == public
    assert private.sign(b"hello").matches(b"hello")
    mark, name, text = pub.read_text().split()
    assert (mark, name, len(base64.b64decode(text))) == ("highwall-key-1", "ann", 32)
    assert pub.read_text().count("\n") == 1


def test_the_private_half_is_never_shown(pair):
    private = signing.load_private(pair[0])
    assert repr(private) == "SigningKey(name='ann')"


def test_no_two_keys_are_alike(tmp_path):
    prints = {signing.write_pair(tmp_path / str(number), "ann").fingerprint for number in range(5)}
    assert len(prints) == 5
    assert all(len(text) == 39 and text.count("-") == 7 for text in prints)


@pytest.mark.parametrize("name", ["ann.key", "ann.pub"])
@pytest.mark.parametrize("kind", ["file", "link"])
def test_a_key_is_never_overwritten(tmp_path, name, kind):
    taken = tmp_path / name
    if kind == "file":
        taken.write_text("mine")
    else:
        taken.symlink_to(tmp_path / "elsewhere")
    assert name in complaint(signing.write_pair, tmp_path / "ann", "ann")
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_name_keeps_its_dots_and_its_folder_is_made(tmp_path):
    signing.write_pair(tmp_path / "keys" / "site.2026", "ann")
    assert sorted(path.name for path in (tmp_path / "keys").iterdir()) == ["site.2026.key", "site.2026.pub"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written_is_named(tmp_path):
    tmp_path.chmod(0o500)
    assert "ann.key" in complaint(signing.write_pair, tmp_path / "ann", "ann")


def test_a_file_in_the_place_of_a_folder_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    assert "file" in complaint(signing.write_pair, tmp_path / "file" / "ann", "ann")


@pytest.mark.parametrize("name", ["", "two words", "-x", "ä", "a\nb", "x" * 65, "a/b"])
def test_a_label_is_one_word(tmp_path, name):
    assert "name" in complaint(signing.write_pair, tmp_path / "ann", name)
    assert not list(tmp_path.iterdir())


def pem(private, encryption=None, form=PrivateFormat.PKCS8) -> str:
    return private.private_bytes(Encoding.PEM, form, encryption or NoEncryption()).decode()


PLAIN = Ed25519PrivateKey.from_private_bytes(ANN.seed)


def test_a_plain_pem_of_another_tool_is_named_after_its_file(tmp_path):
    (tmp_path / "mine.key").write_text(pem(PLAIN))
    assert signing.load_private(tmp_path / "mine.key") == SigningKey("mine", ANN.seed)
    (tmp_path / "my key.pem").write_text(pem(PLAIN))
    assert "my key" in complaint(signing.load_private, tmp_path / "my key.pem")


def test_the_label_in_the_file_outlives_a_renaming(pair):
    moved = pair[0].rename(pair[0].with_name("other.pem"))
    assert signing.load_private(moved).name == "ann"


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_openssl_reads_our_private_keys(pair):
    done = subprocess.run(["openssl", "pkey", "-in", pair[0], "-noout"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (pem(PLAIN, BestAvailableEncryption(b"secret")), "passphrase"),
        (pem(rsa.generate_private_key(65537, 2048)), "RSA"),
        (pem(ec.generate_private_key(ec.SECP256R1())), "holds a key of kind E"),
        (pem(PLAIN, form=PrivateFormat.OpenSSH), "no private key in PEM form"),
        (PLAIN.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode(), "no private key"),
        (ANN.public.line, "is a public key"),
        (pem(PLAIN).replace("MC4C", "MC4D"), "damaged"),
        (pem(PLAIN)[:60], "damaged"),
        ("", "no private key"),
        ("\0" * 70_000, "larger than"),
        ("-----BEGIN PRIVATE KEY-----\n-----END PRIVATE KEY-----\n", "damaged"),
    ],
)
def test_what_is_no_private_key_is_said_by_its_kind(tmp_path, text, says):
    (tmp_path / "x.key").write_text(text)
    message = complaint(signing.load_private, tmp_path / "x.key")
    assert "x.key" in message
    assert says in message


def test_a_missing_key_a_folder_and_a_picture_are_named(tmp_path):
    assert "does not exist" in complaint(signing.load_private, tmp_path / "no.key")
    assert "cannot read" in complaint(signing.load_private, tmp_path)
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n")
    assert "not text" in complaint(signing.load_private, tmp_path / "a.png")


def test_a_mailed_public_key_survives_blanks_and_line_ends():
    for text in (f"  {ANN.public.line}\r\n\r\n", ANN.public.line.replace(" ", "\t")):
        assert signing.parse_public(text, "x") == ANN.public


@pytest.mark.parametrize(
    "text",
    [
        "",
        "highwall-key-1",
        "highwall-key-1 ann",
        f"highwall-key-2 ann {signing.to_base64(ANN.public.raw)}",
        f"{ANN.public.line} more",
        f"{ANN.public.line}\n{BOB.public.line}",
        ANN.public.line[:-1],
        ANN.public.line.replace("ann", "a*n"),
        f"highwall-key-1 ann {'!' * 44}",
    ],
)
def test_a_malformed_public_key_is_one_line_that_names_its_file(text):
    assert complaint(signing.parse_public, text, "ann.pub").startswith("ann.pub")


@given(st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.@+-]{0,63}", fullmatch=True), st.binary(min_size=32, max_size=32))
def test_any_public_key_survives_its_line(name, raw):
    assert signing.parse_public(PublicKey(name, raw).line, "x") == PublicKey(name, raw)
