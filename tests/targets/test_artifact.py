"""The artifact file: the same bytes every time, and not one byte of it may differ unnoticed."""

import hashlib
import io
import json
import random
import struct
import zipfile
from dataclasses import asdict, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from targets.runtime import artifact, container
from targets.runtime.errors import HighwallError
from targets.runtime.manifest import decode_manifest, encode_manifest, to_json

WHERE = "mine.highwall"


@pytest.fixture(scope="module")
def data(segmenter):
    return artifact.encode(*segmenter.all)


def refused(data: bytes) -> str:
    with pytest.raises(HighwallError) as caught:
        artifact.decode(data, WHERE)
    message = str(caught.value)
    assert message.startswith(WHERE)
    assert "\n" not in message
    return message


def repacked(data: bytes, change) -> bytes:
    """The artifact with `change` applied to its members and the digests made to agree again."""
    members = container.unpack(data, WHERE)
    members.pop("digests.json")
    change(members)
    members["digests.json"] = artifact._encode_digests(artifact._digests(members))
    return container.pack(members)


def test_what_is_written_is_what_is_read(tmp_path, segmenter):
    found = artifact.read(segmenter.write(tmp_path / "a.highwall"))
    assert found.sha256 == hashlib.sha256((tmp_path / "a.highwall").read_bytes()).hexdigest()
    assert found.manifest == segmenter.manifest
    assert found.model == segmenter.model
    assert found.receipt == segmenter.receipt
    assert (found.golden.block, found.golden.tolerance) == (2, 1e-6)
    for name in ("seeds", "images", "expected"):
        written, read = getattr(segmenter.golden, name), getattr(found.golden, name)
        assert written.dtype == read.dtype
        np.testing.assert_array_equal(written, read)


def test_the_same_inputs_give_the_same_bytes_and_leave_one_file(tmp_path, classifier):
    first, second = classifier.write(tmp_path / "a.highwall"), classifier.write(tmp_path / "b.highwall")
    assert first.read_bytes() == second.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.highwall", "b.highwall"]


def test_other_tools_read_it_as_a_plain_zip_with_fixed_times(data, segmenter):
    with zipfile.ZipFile(io.BytesIO(data)) as file:
        assert file.testzip() is None
        assert file.namelist() == [
            "manifest.json",
            "model.onnx",
            "golden.npz",
            "receipt.json",
            "digests.json",
        ]
        assert {info.date_time for info in file.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        assert {info.compress_type for info in file.infolist()} == {zipfile.ZIP_STORED}
        assert json.loads(file.read("manifest.json"))["input"]["bands"] == 2
        with np.load(io.BytesIO(file.read("golden.npz"))) as arrays:
            np.testing.assert_array_equal(arrays["expected"], segmenter.golden.expected)


def test_every_flipped_bit_of_200_places_is_refused(data):
    chance = random.Random(20)
    # The directory at the end is small against the model: half of the places lie in the last 600 bytes.
    places = [chance.randrange(len(data)) for _ in range(100)]
    places += [chance.randrange(len(data) - 600, len(data)) for _ in range(100)]
    for place in places:
        damaged = bytearray(data)
        damaged[place] ^= 1 << chance.randrange(8)
        refused(bytes(damaged))


def test_truncation_at_every_tenth_length_is_refused(data):
    for length in range(0, len(data), 10):
        refused(data[:length])


@pytest.mark.parametrize("extra", [b"\0", b"PK\x05\x06" + b"\0" * 18, b"x" * 999])
def test_bytes_before_or_after_the_zip_are_refused(data, extra):
    assert "after its end" in refused(data + extra)
    refused(extra + data)


@given(st.binary(max_size=300))
def test_no_bytes_make_the_reader_do_anything_but_refuse(noise):
    refused(noise)
    refused(b"PK\x03\x04" + noise)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_spliced_artifact_is_refused(data, choice):
    start = choice.draw(st.integers(0, len(data) - 1))
    stop = choice.draw(st.integers(start, len(data)))
    spliced = data[:start] + choice.draw(st.binary(max_size=40)) + data[stop:]
    if spliced != data:
        refused(spliced)


@pytest.mark.parametrize("name", ["manifest.json", "model.onnx", "golden.npz", "receipt.json", "digests.json"])
def test_a_removed_added_renamed_or_altered_member_is_named(data, name):
    members = container.unpack(data, WHERE)
    assert name in refused(container.pack({key: value for key, value in members.items() if key != name}))
    renamed = {("x" + key if key == name else key): value for key, value in members.items()}
    assert name in refused(container.pack(renamed))
    assert name in refused(container.pack({**members, name: members[name] + b" "}))
    assert "extra.txt" in refused(container.pack({**members, "extra.txt": b"hello"}))


def test_an_added_member_with_digests_to_match_is_still_refused(data):
    assert "extra.txt" in refused(repacked(data, lambda members: members.update({"extra.txt": b"hello"})))


def test_members_in_another_order_are_refused(data):
    members = container.unpack(data, WHERE)
    assert "out of order" in refused(container.pack(dict(reversed(members.items()))))


def test_a_member_held_twice_is_refused(data):
    members = container.unpack(data, WHERE)
    with zipfile.ZipFile(stream := io.BytesIO(), "w") as file, pytest.warns(UserWarning):
        for name in ("manifest.json", "manifest.json"):
            file.writestr(name, members["manifest.json"])
    assert "twice" in refused(stream.getvalue())


@pytest.mark.parametrize("name", ["../evil", "/etc/passwd", "a/b", "..", "C:\\x", "näme"])
def test_a_member_that_would_leave_the_folder_is_refused(data, name):
    members = container.unpack(data, WHERE)
    with zipfile.ZipFile(stream := io.BytesIO(), "w") as file:
        for key, value in {name: b"x", **members}.items():
            file.writestr(key, value)
    assert "which no artifact has" in refused(stream.getvalue())


def test_a_compressed_member_is_refused_before_it_is_unpacked():
    with zipfile.ZipFile(stream := io.BytesIO(), "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("manifest.json", b"\0" * 50_000_000)
    assert "compressed" in refused(stream.getvalue())


def test_an_absurd_size_is_refused(data):
    absurd = bytearray(data)
    absurd[18:26] = struct.pack("<2I", 2**31, 2**31)
    assert "at most" in refused(bytes(absurd))


def test_a_file_too_large_is_refused_without_being_read(tmp_path):
    path = tmp_path / "huge.highwall"
    with path.open("wb") as handle:
        handle.truncate(container.MAX_BYTES + 1)
    with pytest.raises(HighwallError, match="larger than"):
        artifact.read(path)


def test_a_missing_file_a_folder_and_a_picture_are_named(tmp_path):
    with pytest.raises(HighwallError, match=r"no\.highwall does not exist"):
        artifact.read(tmp_path / "no.highwall")
    with pytest.raises(HighwallError, match="cannot read"):
        artifact.read(tmp_path)
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n")
    with pytest.raises(HighwallError, match="not a Highwall artifact"):
        artifact.read(tmp_path / "a.png")


def manifest_with(data: bytes, change) -> str:
    def edit(members):
        raw = json.loads(members["manifest.json"])
        change(raw)
        members["manifest.json"] = to_json(raw, "test")

    return refused(repacked(data, edit))


def test_a_newer_schema_says_to_upgrade(data):
    assert "upgrade" in manifest_with(data, lambda raw: raw.update(schema=2))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("name", ""),
        ("name", "two\nlines"),
        ("schema", True),
        ("schema", 0),
        ("task", "guess"),
        ("model_version", -1),
        ("model_version", 1.5),
        ("output_shape", [13, 8]),
        ("output_shape", "13x9"),
        ("threshold", 1.01),
        ("threshold", None),
        ("threshold", 10**400),
        ("labels", []),
        ("labels", ["crack", 3]),
        ("runtime", "../onnx"),
        ("recipe", []),
        ("provenance", None),
        ("input", 3),
        ("input.height", 0),
        ("input.width", 10**9),
        ("input.dtype", "float32"),
        ("input.dtype", []),
        ("input.layout", "NCHW"),
        ("input.scale", [1, 2, 3]),
        ("input.sensors", -1),
    ],
)
def test_a_malformed_manifest_names_the_key(data, key, value):
    def change(raw):
        *outer, last = key.split(".")
        (raw[outer[0]] if outer else raw)[last] = value

    assert f"key {key} " in manifest_with(data, change)


@pytest.mark.parametrize("key", ["name", "board", "input", "threshold", "schema"])
def test_a_missing_or_unknown_key_is_named(data, key):
    assert f"key {key} is missing" in manifest_with(data, lambda raw: raw.pop(key))
    assert f"key {key}x is unknown" in manifest_with(data, lambda raw: raw.update({f"{key}x": 1}))
    assert f"key input.{key}x is unknown" in manifest_with(data, lambda raw: raw["input"].update({f"{key}x": 1}))


@pytest.mark.parametrize("text", [b"", b"[]\n", b"{", b'{"a": 1, "a": 1}\n', b'{"a":1}\n', b"[" * 99999, b"\xff"])
def test_json_in_another_form_is_refused(data, text):
    assert "receipt.json" in refused(repacked(data, lambda members: members.update({"receipt.json": text})))


def test_numbers_json_cannot_hold_are_refused_when_writing(tmp_path, classifier):
    manifest, model, golden, _ = classifier.all
    with pytest.raises(HighwallError, match=r"receipt\.json"):
        artifact.write(tmp_path / "a.highwall", manifest, model, golden, {"auc": float("nan")})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "change",
    [
        {"block": 0},
        {"block": 3},
        {"tolerance": float("nan")},
        {"tolerance": -1.0},
        {"seeds": np.zeros(0, np.uint32)},
        {"seeds": np.zeros((2, 1), np.uint32)},
        {"images": np.zeros((1, 13, 9, 2), np.uint8)},
        {"images": np.zeros((1, 13, 9, 3), np.uint16)},
        {"images": np.zeros((0, 13, 9, 2), np.uint16)},
        {"expected": np.full((3, 7, 5), np.nan, np.float32)},
        {"expected": np.zeros((3, 7), np.float32)},
    ],
)
def test_golden_vectors_that_do_not_fit_are_not_written(tmp_path, segmenter, change):
    manifest, model, golden, receipt = segmenter.all
    with pytest.raises(HighwallError, match=r"golden\.npz"):
        artifact.write(tmp_path / "a.highwall", manifest, model, replace(golden, **change), receipt)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "header",
    [
        "{'descr': '|O', 'fortran_order': False, 'shape': (1,), }",
        "{'descr': '<f4', 'fortran_order': True, 'shape': (1,), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (999999999, 999999999), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (0, 999999999, 999999999, 999999999), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (-1,), }",
        "__import__('os').abort()",
    ],
)
def test_a_hostile_array_header_is_refused(header):
    text = header.encode() + b"\n"
    npy = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text
    with pytest.raises(HighwallError, match=r"seeds\.npy"):
        container.unpack_arrays(container.pack({"seeds.npy": npy}), WHERE)


@given(
    st.sampled_from(["<u1", "<u2", "<u4", "<i8", "<f4", "<f8"]),
    st.lists(st.integers(0, 5), max_size=4),
)
def test_arrays_of_any_shape_survive(dtype, shape):
    array = np.arange(np.prod(shape, dtype=int)).astype(dtype).reshape(shape)
    found = container.unpack_arrays(container.pack_arrays({"a": array}), WHERE)["a"]
    assert found.dtype == array.dtype
    np.testing.assert_array_equal(found, array)


@given(st.floats(0, 1), st.integers(0, 2**53), st.text('aZ9-_ äß漢😀"\\', min_size=1))
def test_any_manifest_survives(threshold, version, name):
    manifest = replace(MANIFEST, threshold=threshold, model_version=version, name=name[:200])
    assert decode_manifest(encode_manifest(manifest), WHERE) == manifest


MANIFEST = artifact.Manifest(
    name="m",
    task="classify",
    model_version=1,
    input=artifact.InputSpec(3, 3, 13, "uint16", scale=(0.0001,), offset=(-0.1,), sensors=2),
    output_shape=(1,),
    threshold=0.5,
    labels=("crack",),
    board="host",
    runtime="onnx",
    recipe={"nested": {"list": [1, 2.5, None]}},
    provenance={},
)


def test_a_manifest_is_frozen_and_plain():
    with pytest.raises(AttributeError):
        MANIFEST.name = "other"
    assert json.loads(json.dumps(asdict(MANIFEST)))["input"]["scale"] == [0.0001]
