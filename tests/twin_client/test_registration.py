"""Registration: who is asked, what leaves the gateway, and that no clock and no crash costs it its name."""

import asyncio
import random
import ssl
from datetime import timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from reference_twin import NOW, Authority, Twin, stamp

from targets.runtime.errors import HighwallError
from twin_client.protocol.errors import ProtocolError
from twin_client.protocol.invitation import ALPHABET, LENGTH, invitation_of, invite
from twin_client.protocol.records import ClockQuality
from twin_client.services import registration as room
from twin_client.services.https import LinkError, address_of
from twin_client.services.registration import Pace, Registration

QUICK = Pace(first=0.02, most=0.05)


@pytest.fixture(scope="module")
def authority():
    return Authority()


@pytest.fixture
def twin(authority, tmp_path):
    with Twin(authority, authority.server(tmp_path)) as running:
        yield running


@pytest.fixture
def gateway(tmp_path):
    return Registration(tmp_path / "identity", stamp, QUICK, seed=1)


def enrol(gateway, twin, code=None, name="pit-7", again=False):
    gateway.begin(twin.url, code or twin.authority.invite(), name, again)
    said = []
    return asyncio.run(gateway.wait(said.append)), said


def refusal(call, *arguments, **options) -> str:
    with pytest.raises(HighwallError) as caught:
        outcome = call(*arguments, **options)
        if asyncio.iscoroutine(outcome):
            asyncio.run(outcome)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- the code -------------------------------------------------------------------------------------------


def test_a_code_is_read_back_however_it_is_typed(authority):
    code = authority.invite()
    symbols = code.replace("-", "")
    assert len(symbols) == LENGTH and not set(symbols) & set("0O1I")
    for typed in (code, code.lower(), symbols, code.replace("-", " "), f"  {code[:9]}\n{code[9:]} "):
        assert invitation_of(typed) == invitation_of(code)
    found = invitation_of(code)
    assert found.matches(authority.certificate.fingerprint(hashes.SHA256()))
    assert found.secret not in repr(found)


def test_no_code_with_one_wrong_symbol_or_two_neighbours_swapped_is_taken():
    draw = random.Random(5)
    for _ in range(5):
        symbols = invite(draw.randbytes(32), draw.randbytes(7)).code.replace("-", "")
        for at, right in enumerate(symbols):
            wrong = [symbols[:at] + letter + symbols[at + 1 :] for letter in ALPHABET if letter != right]
            if at and symbols[at - 1] != right:
                wrong.append(symbols[: at - 1] + right + symbols[at - 1] + symbols[at + 1 :])
            wrong.append(symbols[:at] + symbols[at + 1 :])
            wrong.append(symbols[:at] + right + symbols[at:])
            for typed in wrong:
                with pytest.raises(ProtocolError):
                    invitation_of(typed)


def test_a_code_holds_140_bits_of_the_fingerprint_and_55_of_the_secret():
    digest, secret = bytes(32), bytes(7)
    plain = invite(digest, secret)
    for bit in range(256):
        changed = invite((1 << (255 - bit)).to_bytes(32, "big"), secret)
        assert (changed.fingerprint != plain.fingerprint) == (bit < 140)
    for bit in range(56):
        changed = invite(digest, (1 << (55 - bit)).to_bytes(7, "big"))
        assert (changed.secret != plain.secret) == (bit < 55)


@pytest.mark.parametrize("typed", ["", "-", "K7Q2", "O" * LENGTH, "2" * LENGTH, "ß" * LENGTH, "2" * 10_000])
def test_a_code_that_is_none_says_what_is_wrong_in_one_line(gateway, typed):
    assert "read it again" in refusal(gateway.begin, "https://twin.example", typed, "pit-7")


# --- the way in -----------------------------------------------------------------------------------------


def test_a_gateway_that_a_person_approves_has_a_certificate_and_a_key_that_never_left(gateway, twin, authority):
    twin.approve_after = 3
    assert gateway.identity() is None
    held, said = enrol(gateway, twin)
    assert said == ["waiting for Ann"]
    assert held == gateway.identity()
    assert (held.gateway, held.url) == ("pit-7", twin.url)
    assert held.key.stat().st_mode & 0o777 == 0o600
    assert held.ca.read_text() == authority.pem
    private = load_pem_private_key(held.key.read_bytes(), None).private_numbers().private_value.to_bytes(32, "big")
    for body in twin.received:
        assert set(body) == {"version", "gateway", "request", "secret"}
        assert private not in x509.load_pem_x509_csr(body["request"].encode()).public_bytes(Encoding.DER)
    assert len({body["request"] for body in twin.received}) == 1
    assert set(twin.secrets) == {invitation_of(authority.invite()).secret}
    assert gateway.pending() is None
    held.context()


def test_the_secret_is_never_sent_to_a_twin_with_another_ca(gateway, twin, tmp_path):
    stranger = Authority("someone else's CA")
    gateway.begin(twin.url, stranger.invite(), "pit-7")
    assert "fingerprint" in refusal(gateway.ask)
    assert twin.received == [] and twin.connections == 1


def test_the_secret_is_never_sent_to_one_who_only_shows_the_right_ca(gateway, authority, tmp_path):
    stranger = Authority("pit CA")  # the same name, another key
    stranger.certificate, own = authority.certificate, stranger.certificate
    pem = stranger.server(tmp_path)
    stranger.certificate = own
    with Twin(stranger, pem) as impostor:
        gateway.begin(impostor.url, authority.invite(), "pit-7")
        assert "refused" in refusal(gateway.ask)
        assert impostor.received == [] and impostor.connections == 2


def test_the_secret_is_never_sent_to_another_host_of_the_same_ca(gateway, authority, tmp_path):
    with Twin(authority, authority.server(tmp_path, "other.example")) as other:
        gateway.begin(other.url, authority.invite(), "pit-7")
        assert "refused" in refusal(gateway.ask)
        assert other.received == []


def test_enrolling_again_goes_on_with_the_same_key_and_request(twin, tmp_path):
    twin.approve_after = 2
    for _ in range(3):  # as after a power cut: nothing is kept but the folder
        gateway = Registration(tmp_path / "identity", stamp, QUICK)
        gateway.begin(twin.url, twin.authority.invite(), "pit-7")
        reply = asyncio.run(gateway.ask())
    assert reply.state == "approved"
    assert len({body["request"] for body in twin.received}) == 1


def test_a_new_code_of_the_same_twin_goes_on_with_the_same_request(gateway, twin):
    twin.approve_after = 1
    gateway.begin(twin.url, twin.authority.invite(b"first.."), "pit-7")
    asyncio.run(gateway.ask())
    enrol(gateway, twin, twin.authority.invite(b"second."))
    assert len(set(twin.secrets)) == 2
    assert len({body["request"] for body in twin.received}) == 1


def test_another_ca_or_name_is_refused_unless_told(gateway, twin, tmp_path):
    stranger = Authority("new CA")
    gateway.begin(twin.url, twin.authority.invite(), "pit-7")
    assert "--again" in refusal(gateway.begin, twin.url, stranger.invite(), "pit-7")
    assert "--again" in refusal(gateway.begin, twin.url, twin.authority.invite(), "pit-8")
    held, _ = enrol(gateway, twin)
    assert "ANOTHER CA" in refusal(gateway.begin, twin.url, stranger.invite(), "pit-7")
    assert "this very twin" in refusal(gateway.begin, twin.url, twin.authority.invite(), "pit-7")
    with Twin(stranger, stranger.server(tmp_path)) as new:
        new.approve_after = 1
        gateway.begin(new.url, stranger.invite(), "pit-9", again=True)
        asyncio.run(gateway.ask())
        assert gateway.identity() == held  # the old one serves until the new one is there
        held.context()
        changed, _ = enrol(gateway, new, name="pit-9", again=True)
    assert (changed.gateway, changed.ca.read_text()) == ("pit-9", stranger.pem)
    assert len(list((tmp_path / "identity").glob("held-*"))) == 1


def test_a_refusal_is_told_and_ends_the_enrolment(gateway, twin):
    twin.refuse = "code\nspent \x1b[31m"
    gateway.begin(twin.url, twin.authority.invite(), "pit-7")
    assert "code?spent ?[31m" in refusal(gateway.wait, print)
    assert gateway.pending() is None and gateway.identity() is None


@pytest.mark.parametrize(
    "signing",
    [
        {"name": "pit-8"},
        {"key": ec.generate_private_key(ec.SECP256R1()).public_key()},
        {"begins": -60, "ends": -1},
        {"begins": 2, "ends": 60},
    ],
    ids=["name", "key", "ended", "future"],
)
def test_a_certificate_that_is_not_ours_or_not_valid_is_not_taken(gateway, twin, signing):
    twin.signing = signing
    gateway.begin(twin.url, twin.authority.invite(), "pit-7")
    refusal(gateway.ask)
    assert gateway.identity() is None
    twin.signing = {}
    assert gateway.pending() is not None  # the twin may mend it


def test_a_certificate_by_another_ca_is_not_taken(gateway, authority, tmp_path):
    with Twin(authority, authority.server(tmp_path), issuer=Authority()) as twin:
        gateway.begin(twin.url, authority.invite(), "pit-7")
        assert "does not lead to its CA" in refusal(gateway.ask)
        assert gateway.identity() is None


@pytest.mark.parametrize("answer", [b"", b"[]", b"{", b'{"version":9,"state":"approved"}', b"x" * 300_000])
def test_junk_from_the_twin_is_one_line_and_changes_nothing(gateway, twin, answer):
    twin.answer = answer
    gateway.begin(twin.url, twin.authority.invite(), "pit-7")
    refusal(gateway.ask)
    assert gateway.identity() is None and gateway.pending() is not None


def test_a_twin_that_is_away_or_ill_is_asked_again(gateway, twin, authority):
    gateway.begin("https://127.0.0.1:9/twin", authority.invite(), "pit-7")
    with pytest.raises(LinkError):
        asyncio.run(gateway.ask())
    twin.status = 503
    gateway.begin(twin.url, authority.invite(), "pit-7")
    with pytest.raises(LinkError):
        asyncio.run(gateway.ask())

    async def mended() -> None:
        waiting = asyncio.create_task(gateway.wait(lambda _: None))
        await asyncio.sleep(0.2)
        assert not waiting.done()
        twin.status = 200
        await asyncio.wait_for(waiting, 10)

    asyncio.run(mended())


@pytest.mark.parametrize(
    "url",
    ["http://a", "https://", "https://u:p@a", "a", "https://a:99999", "https://a/\nb", "https://a/#b", "https://[a"],
)
def test_an_address_that_is_no_plain_https_is_refused(url):
    assert "address" in refusal(address_of, url)


# --- time -----------------------------------------------------------------------------------------------


def test_a_gateway_whose_clock_is_weeks_back_is_enrolled(tmp_path, twin):
    """The server's certificate is a day old and ours backdated by a month: by this clock both begin in the future."""
    gateway = Registration(tmp_path / "identity", lambda: stamp(-45, ClockQuality.LOST), QUICK)
    held, _ = enrol(gateway, twin)
    assert held.begins == (NOW - timedelta(days=30)).timestamp()


def test_a_clock_that_claims_to_be_set_is_held_to_what_it_says(tmp_path, twin):
    gateway = Registration(tmp_path / "identity", lambda: stamp(-45), QUICK)
    gateway.begin(twin.url, twin.authority.invite(), "pit-7")
    assert "begins on" in refusal(gateway.ask)
    assert twin.received == []


def test_a_lost_clock_excuses_neither_years_nor_an_end_that_has_passed(tmp_path, twin, authority):
    for days in (-500, 365):
        gateway = Registration(tmp_path / str(days), lambda days=days: stamp(days, ClockQuality.LOST), QUICK)
        gateway.begin(twin.url, authority.invite(), "pit-7")
        assert "by this gateway's clock" in refusal(gateway.ask)
    assert twin.received == []


def test_a_lost_clock_excuses_no_wrong_chain(tmp_path, authority):
    stranger = Authority("someone else's CA")
    with Twin(stranger, stranger.server(tmp_path)) as twin:
        gateway = Registration(tmp_path / "identity", lambda: stamp(-45, ClockQuality.LOST), QUICK)
        gateway.begin(twin.url, authority.invite(), "pit-7")
        assert "fingerprint" in refusal(gateway.ask)
        assert twin.received == []


# --- renewal --------------------------------------------------------------------------------------------


def test_a_certificate_is_renewed_in_its_last_third_with_a_new_key_and_by_the_old_one(tmp_path, twin):
    clock = [0.0]
    gateway = Registration(tmp_path / "identity", lambda: stamp(clock[0]), QUICK)
    before, _ = enrol(gateway, twin)
    key = before.key.read_bytes()
    for clock[0], due in ((0, False), (29, False), (31, True), (59, True)):
        assert gateway.renewal_due() is due
    twin.signing = {"begins": 20, "ends": 150}
    asyncio.run(gateway.renew())
    after = gateway.identity()
    assert twin.peers[-1] == "pit-7" and twin.secrets[-1] == ""
    assert after.key.read_bytes() != key and after.ends > before.ends
    assert not gateway.renewal_due()
    assert not before.key.exists()
    after.context()


def test_a_renewal_that_waits_or_fails_leaves_the_old_certificate_in_use(gateway, twin, tmp_path):
    before, _ = enrol(gateway, twin)
    twin.approve_after = 3
    assert asyncio.run(gateway.renew()).state == "pending"
    twin.approve_after, twin.signing = 0, {"name": "pit-8"}
    refusal(gateway.renew)
    assert gateway.identity() == before
    twin.refuse = "no"
    refusal(gateway.renew)
    assert gateway.identity() == before
    before.context()


# --- power cuts -----------------------------------------------------------------------------------------


class PowerCut(BaseException):
    """Nothing catches it, as nothing catches the real one."""


def test_the_power_may_go_at_every_step_of_an_enrolment(twin, tmp_path, monkeypatch):
    """Each step on the disk in turn is the last one; what is there then either is an identity or goes on to one."""
    names = ["save", "save_state", "point", "remove"]
    real = {name: getattr(room.disk, name) for name in names}
    steps = [0]

    def cut_at(limit):
        def wrap(call):
            def step(*arguments, **options):
                steps[0] += 1
                if steps[0] > limit:
                    raise PowerCut
                return call(*arguments, **options)

            return step

        for name in names:
            monkeypatch.setattr(room.disk, name, wrap(real[name]))

    for limit in range(100):
        gateway = Registration(tmp_path / f"identity-{limit}", stamp, QUICK)
        steps[0] = 0
        cut_at(limit)
        try:
            enrol(gateway, twin)
            done = True
        except PowerCut:
            done = False
        for name in names:
            monkeypatch.setattr(room.disk, name, real[name])
        held = gateway.identity()
        if held is None:
            held, _ = enrol(gateway, twin)
        held.context()  # loads key and certificate, which OpenSSL holds against each other
        if done:
            break
    assert 8 < limit < 99


def test_openssl_takes_the_identity_for_tls_and_the_twin_sees_the_name(gateway, twin):
    held, _ = enrol(gateway, twin)
    context = held.context()
    assert context.verify_mode == ssl.CERT_REQUIRED and context.check_hostname
    certificate = x509.load_pem_x509_certificate(held.certificate.read_bytes())
    assert certificate.public_key().curve.name == "secp256r1"
