"""Orders on the wire: what is packed comes back, and what is not one of ours is refused with a reason."""

import subprocess
import sys

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from twin_client.protocol.errors import ProtocolError
from twin_client.protocol.orders import (
    MOST_BYTES,
    ORDERS,
    VERSION,
    Answer,
    Command,
    Desired,
    EnrolReply,
    EnrolRequest,
    Refusal,
    Reported,
    arguments_of,
    from_json,
    pack,
    to_json,
    unpack,
)
from twin_client.protocol.records import ClockQuality, Stamp
from twin_client.protocol.site import Site

WHOLE = st.integers(0, 2**53 - 1)
WORDS = st.text(max_size=40)
NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.:-]{0,63}", fullmatch=True)
LINES = st.text(min_size=1, max_size=200)
STAMPS = st.builds(Stamp, WHOLE, WHOLE, WORDS, st.sampled_from(ClockQuality))
FINITE = st.floats(allow_nan=False, allow_infinity=False)
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | FINITE | WORDS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(WORDS, inner, max_size=4),
    max_leaves=8,
)
TABLES = st.dictionaries(WORDS, PLAIN, max_size=4)
OUTCOMES = st.sampled_from(["done", "refused", "failed"])
MESSAGES = st.one_of(
    st.tuples(WHOLE, NAMES, LINES, LINES, LINES, TABLES).map(
        lambda drawn: Command(VERSION, drawn[1], drawn[2], drawn[3], drawn[0], drawn[0] + 1, drawn[4], drawn[5])
    ),
    st.builds(
        Answer,
        st.just(VERSION),
        WORDS,
        WORDS,
        OUTCOMES,
        WORDS,
        STAMPS,
        st.dictionaries(WORDS, FINITE, max_size=3),
    ),
    st.builds(Desired, st.just(VERSION), NAMES, st.integers(1, 2**53), TABLES),
    st.builds(
        Reported,
        st.just(VERSION),
        WORDS,
        WHOLE,
        TABLES,
        st.booleans(),
        STAMPS,
        st.none() | st.builds(Refusal, WHOLE, WORDS),
    ),
    st.builds(EnrolRequest, st.just(VERSION), NAMES, WORDS, WORDS),
    st.builds(
        EnrolReply,
        st.just(VERSION),
        st.sampled_from(["pending", "refused", "approved"]),
        WORDS,
        st.floats(0, 86_400),
        WORDS,
    ),
)
COMMAND = Command(1, "pit-7", "a", "ann", 1_000, 2_000, "pair_tag", {"tag": "tag-7"})


@given(MESSAGES)
def test_every_message_comes_back_from_both_codings(message):
    kind = type(message)
    assert unpack(kind, pack(message)) == message
    assert from_json(kind, to_json(message)) == message


@given(MESSAGES, st.data())
def test_a_message_cut_short_is_refused(message, data):
    packed = pack(message)
    with pytest.raises(ProtocolError):
        unpack(type(message), packed[: data.draw(st.integers(0, len(packed) - 1))])


@given(st.binary(max_size=200))
def test_junk_is_refused_and_never_another_error(data):
    for kind in (Command, Answer, Desired, Reported, EnrolRequest, EnrolReply):
        for read in (unpack, from_json):
            with pytest.raises(ProtocolError):
                read(kind, data)


@pytest.mark.parametrize("data", [b"\x91" * 100_000, b"[" * 100_000, b"x" * (MOST_BYTES + 1)])
def test_deep_and_long_messages_are_refused(data):
    for read in (unpack, from_json):
        with pytest.raises(ProtocolError):
            read(Command, data)


@pytest.mark.parametrize("version", [0, -1, VERSION + 1])
def test_another_version_is_refused_by_its_number(version):
    newer = msgspec.structs.replace(COMMAND, version=version)
    with pytest.raises(ProtocolError, match=f"version {version} "):
        unpack(Command, pack(newer))


@pytest.mark.parametrize(
    "changes",
    [
        {"gateway": "a b"},
        {"gateway": ""},
        {"gateway": "a\n"},
        {"gateway": "../x"},
        {"id": ""},
        {"id": "x" * 201},
        {"issuer": ""},
        {"expires": 1_000},
        {"issued": -1},
        {"arguments": [1]},
        {"name": None},
    ],
)
def test_a_command_with_a_field_out_of_bounds_is_none(changes):
    with pytest.raises(ProtocolError):
        unpack(Command, msgspec.msgpack.encode({**msgspec.to_builtins(COMMAND), **changes}))


def test_fields_of_a_newer_minor_writer_are_skipped_in_messages_but_not_in_arguments():
    known = {**msgspec.to_builtins(COMMAND), "second_approver": "bob"}
    assert unpack(Command, msgspec.msgpack.encode(known)) == COMMAND
    with pytest.raises(ProtocolError, match="until"):  # half an order would be another order
        arguments_of(msgspec.structs.replace(COMMAND, arguments={"tag": "tag-7", "until": 5}))


def test_no_order_and_no_setting_can_name_a_path_a_device_or_a_program():
    """By its fields: a new one has to be looked at here before it can come down from a twin."""
    allowed = {
        "capture_now": {"camera"},
        "pair_tag": {"tag", "type", "note"},
        "unpair_tag": {"tag"},
        "set_sensor_calibration": {"tag", "quantity", "calibration"},
        "send_diagnostics": set(),
        "update_model": {"url", "sha256", "size", "shadow"},
        "restart": set(),
        "reconfigure": {"number", "settings"},
    }
    assert {name: set(order.arguments.__struct_fields__) for name, order in ORDERS.items()} == allowed
    found = set()

    def walk(kind):
        for field in msgspec.inspect.type_info(kind).fields:
            found.add(field.name)
            for inner in (field.type, *getattr(field.type, "types", ()), getattr(field.type, "value_type", None)):
                if isinstance(inner, msgspec.inspect.StructType):
                    walk(inner.cls)
            if isinstance(item := getattr(field.type, "item_type", None), msgspec.inspect.StructType):
                walk(item.cls)

    walk(Site)
    assert found == {
        *("windows", "utc_offset", "place", "destination", "sensitivity", "rules", "calibrations", "cameras", "ports"),
        *("begin", "end", "days", "latitude", "longitude", "height", "host", "port", "dialect", "fainting", "noise"),
        *("enabled", "period", "threshold", "thumbnail", "baud", "format"),
    }


def test_a_gateway_that_is_not_asked_for_it_loads_no_arrays_and_no_cryptography(root):
    """They take a quarter of the 40 MB that the agent may."""
    script = (
        "import sys\nimport twin_client.config, twin_client.services.registration\n"
        "print([name for name in ('numpy', 'cryptography', 'onnxruntime', 'PIL') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[]", done.stderr
