"""Trust: unsigned, untrusted and trusted are three things, and a key counts only on its days."""

from dataclasses import replace
from datetime import date, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from targets.runtime import artifact, signing, trust
from targets.runtime.errors import HighwallError
from targets.runtime.signing import SigningKey
from targets.runtime.trust import Trust, TrustedKey, judge, load_trust, trusted

ANN, BOB = SigningKey("ann", bytes(range(32))), SigningKey("bob", b"\x07" * 32)
ANN64, BOB64 = (signing.to_base64(key.public.raw) for key in (ANN, BOB))
SIGNATURE = ANN.sign(b"digests")
DAY = date(2026, 11, 22)


def known(first=None, last=None, name="ann"):
    return Trust((TrustedKey(BOB.public), TrustedKey(replace(ANN.public, name=name), first, last)), "t.toml")


@pytest.fixture
def file(tmp_path):
    def write(text, name="trust.toml"):
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return write


def complaint(path) -> str:
    with pytest.raises(HighwallError) as caught:
        load_trust(path)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


# --- judging a signature --------------------------------------------------------------------------------


def test_the_three_states_say_different_things(classifier):
    unsigned = artifact.decode(artifact.encode(*classifier.all), "x")
    signed = artifact.decode(artifact.encode(*classifier.all, key=ANN), "x")
    with pytest.raises(HighwallError, match=r"^pit\.highwall: it is not signed.*`highwall sign"):
        trusted(unsigned, known(), DAY, "pit.highwall")
    stranger = Trust((TrustedKey(BOB.public),), "t.toml")
    with pytest.raises(
        HighwallError, match=r"calls itself ann, fingerprint .*t\.toml does not trust \(it trusts bob"
    ) as caught:
        trusted(signed, stranger, DAY)
    assert ANN.public.fingerprint in str(caught.value)
    found = trusted(signed, known(), DAY)
    assert (found.state, found.key, found.reason, found.warning) == ("trusted", ANN.public, "", "")
    states = [judge(each.signature, one, DAY).state for each, one in ((unsigned, known()), (signed, stranger))]
    assert states == ["unsigned", "untrusted"]


def test_the_same_label_on_another_key_is_not_trusted():
    impostor = SigningKey("bob", ANN.seed).sign(b"digests")
    assert judge(impostor, Trust((TrustedKey(BOB.public),)), DAY).state == "untrusted"


def test_a_trusted_key_goes_by_the_name_the_site_gave_it():
    found = judge(SIGNATURE, known(name="ann-2026"), DAY)
    assert (found.state, found.key.name) == ("trusted", "ann-2026")


@pytest.mark.parametrize(
    ("first", "last", "state"),
    [
        (DAY, DAY, "trusted"),
        (DAY + timedelta(1), None, "untrusted"),
        (DAY, DAY - timedelta(1), "untrusted"),
        (None, DAY, "trusted"),
        (date.min, date.max, "trusted"),
    ],
)
def test_a_key_counts_from_its_first_day_to_its_last(first, last, state):
    assert judge(SIGNATURE, known(first, last), DAY).state == state


def test_a_key_out_of_its_days_names_the_day_and_doubts_the_clock():
    early = judge(SIGNATURE, known(date(2027, 1, 1)), DAY).reason
    assert "only from 2027-01-01; today is 2026-11-22 by this machine's clock" in early
    late = judge(SIGNATURE, known(None, date(2026, 1, 1)), DAY).reason
    assert "only until 2026-01-01; today is 2026-11-22" in late


@given(st.integers(0, 400))
def test_a_key_that_ends_within_thirty_days_warns(days):
    warning = judge(SIGNATURE, known(None, DAY + timedelta(days)), DAY).warning
    assert bool(warning) == (days < trust.WARN_DAYS)
    assert "\n" not in warning


def test_the_warning_counts_the_days():
    ends = [judge(SIGNATURE, known(None, DAY + timedelta(days)), DAY).warning for days in (0, 1, 9)]
    assert ["ends today" in ends[0], "ends tomorrow" in ends[1], "ends in 9 days, on 2026-12-01" in ends[2]] == [
        True
    ] * 3


def test_without_a_day_it_is_today(classifier):
    signed = artifact.decode(artifact.encode(*classifier.all, key=ANN), "x")
    today = trust.today_utc()
    assert trusted(signed, known(today - timedelta(1), today + timedelta(1))).state == "trusted"
    with pytest.raises(HighwallError, match="until"):
        trusted(signed, known(None, today - timedelta(2)))


# --- trust files ----------------------------------------------------------------------------------------

GOOD = f"""
# the site's keys
[[key]]
name = "ann"
public = "{ANN64}"
from = 2026-01-01
until = 2027-06-30

[[key]]
name = "bob"
public = "{BOB64}"
from = 2027-06-01
"""


def test_a_trust_file_of_several_keys_is_read(file):
    found = load_trust(file(GOOD))
    first = TrustedKey(ANN.public, date(2026, 1, 1), date(2027, 6, 30))
    assert found.keys == (first, TrustedKey(BOB.public, date(2027, 6, 1), None))
    assert load_trust(file(GOOD.replace("\n", "\r\n"), "crlf.toml")).keys == found.keys


@pytest.mark.parametrize("name", ["ann.pub", "ann.txt", "ann"])
def test_a_public_key_alone_is_trusted_without_an_end_whatever_its_file_is_called(file, name):
    assert load_trust(file(f"{ANN.public.line}\n", name)).keys == (TrustedKey(ANN.public),)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        (GOOD, "", "key is missing"),
        (GOOD, "key = []", "[[key]]"),
        (GOOD, "key = 3", "[[key]]"),
        (GOOD, "[key]\nname = 'ann'", "[[key]]"),
        (GOOD, "key = [1]", "[[key]]"),
        (GOOD, "[[keys]]", "'keys' is unknown"),
        (GOOD, "[[key]", "neither a .pub file nor a trust file"),
        (GOOD, "highwall-key-9 ann AAAA", "no public key this Highwall knows"),
        (GOOD, "-----BEGIN PRIVATE KEY-----", "private key"),
        (GOOD, "highwall-private-key-1 ann\n-----BEGIN PRIVATE KEY-----\n", "private key"),
        ('name = "bob"', 'name = "ann"', "key 2: name ann is taken"),
        (BOB64, ANN64, "key 2: public is that of ann"),
        ('name = "ann"\n', "", "key 1: name is missing"),
        ('name = "ann"', "name = 7", "key 1: name is 7"),
        ('name = "ann"', 'name = "two words"', "key 1: name is 'two words'"),
        (f'public = "{ANN64}"\n', "", "key 1: public is missing"),
        (f'"{ANN64}"', "12", "key 1: public"),
        (ANN64, ANN64[:-2], "key 1: public"),
        (ANN64, ANN.public.line, "last word of a .pub file"),
        ("from = 2026-01-01\n", "", "key 1: from is missing"),
        ("2026-01-01", '"2026-01-01"', "key 1: from is no date"),
        ("2026-01-01", "2026-01-01T00:00:00Z", "key 1: from is no date"),
        ("2026-01-01", "12:00:00", "key 1: from is no date"),
        ("2026-01-01", "2026-02-30", "neither"),
        ("2027-06-30", "true", "key 1: until is no date"),
        ("2027-06-30", "2025-12-31", "until 2025-12-31 is before from 2026-01-01"),
        ("until", "untill", "'untill' is unknown"),
        ('name = "ann"', 'name = "ann"\nname = "ann"', "neither"),
    ],
)
def test_a_bad_trust_file_is_one_line_that_names_the_fault(file, old, new, says):
    assert old in GOOD
    assert says in complaint(file(GOOD.replace(old, new)))


def test_a_missing_trust_file_a_folder_and_a_picture_are_named(tmp_path):
    assert "does not exist" in complaint(tmp_path / "no.toml")
    assert "cannot read" in complaint(tmp_path)
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n")
    assert "not text" in complaint(tmp_path / "a.png")
    (tmp_path / "big").write_bytes(b"#" * 70_000)
    assert "larger than" in complaint(tmp_path / "big")


@given(st.text(max_size=200))
def test_no_text_makes_the_reader_do_anything_but_refuse(tmp_path_factory, text):
    path = tmp_path_factory.getbasetemp() / "noise.toml"
    path.write_text(text, encoding="utf-8")
    complaint(path)
