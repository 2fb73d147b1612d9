"""Registration: how a gateway gets its name and certificate, and keeps the certificate alive.

The key is made here and never leaves. What leaves is a signing request, with a one-time secret, and only to a twin
whose certificate chains to the very CA whose fingerprint came with that secret. Until a person there has approved,
the gateway has no identity: it records and sends nothing.

The folder, all of it replaceable by enrolling again:

    current -> held-0123456789abcdef/     the identity in force, changed by one rename
    held-.../  key.pem (0600)  certificate.pem  ca.pem  about.json
    pending/   key.pem (0600)  request.pem  enrolment.json (0600)
    renewal/   the same, while a new certificate is asked for with the old one
"""

import asyncio
import hashlib
import random
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from targets.runtime.errors import HighwallError, plain
from twin_client.protocol import orders
from twin_client.protocol.errors import ProtocolError
from twin_client.protocol.invitation import Invitation, invitation_of
from twin_client.protocol.orders import EnrolReply, EnrolRequest
from twin_client.protocol.records import Stamp
from twin_client.services import folder as disk
from twin_client.services import tls
from twin_client.services.https import Address, LinkError, address_of, exchange, shown_chain

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.x509 import Certificate

_MOST_CHAIN: Final = 8


class Pace(msgspec.Struct, frozen=True):
    """How often to ask, seconds: each wait is up to twice the one before, and never all gateways at once."""

    first: float = 2.0
    most: float = 300.0


class Enrolment(msgspec.Struct, frozen=True):
    """What is being asked for, kept so that a restart asks the same."""

    url: str
    gateway: str
    code: str  # the secret in it is spent by the first request that the twin takes


class About(msgspec.Struct, frozen=True):
    """Of a certificate, what is needed every day, so that nobody has to parse it for that."""

    gateway: str
    url: str
    begins: float  # seconds since 1970
    ends: float


@dataclass(frozen=True)
class Identity:
    """Who this gateway is; `key`, `certificate` and `ca` are PEM files."""

    gateway: str
    url: str
    begins: float
    ends: float
    key: Path
    certificate: Path
    ca: Path

    def context(self) -> ssl.SSLContext:
        """TLS as this gateway, with the twin and nobody else; `tls.check_peer` must judge the far end's validity."""
        return tls.context_for(self.ca.read_text(encoding="ascii"), self.certificate, self.key)


class Registration:
    """The identity in `folder`, and the way to one. `now` is the agent's clock, which never goes behind its floor."""

    def __init__(self, folder: Path, now: Callable[[], Stamp], pace: Pace | None = None, seed: int | None = None):
        self._folder, self._clock, self._pace = Path(folder), now, pace or Pace()
        self._random = random.Random(seed)
        self._pending, self._renewal = self._folder / "pending", self._folder / "renewal"

    def identity(self) -> Identity | None:
        """Who this gateway is; None: not approved yet, so nothing may be sent."""
        held = (self._folder / "current").resolve()
        about = disk.load_state(held / "about.json", About)
        if about is None:
            return None
        files = (held / "key.pem", held / "certificate.pem", held / "ca.pem")
        return Identity(about.gateway, about.url, about.begins, about.ends, *files)

    def pending(self) -> Enrolment | None:
        """What waits for a person's approval."""
        return disk.load_state(self._pending / "enrolment.json", Enrolment)

    def begin(self, url: str, code: str, gateway: str, again: bool = False) -> Enrolment:
        """Make the key and the signing request, or find those of the enrolment that this continues.

        `again` gives up what was before, though an identity only when the new one is there. Raises HighwallError for
        a mistyped code, and without `again` for a gateway that has an identity, or asks for another one.
        """
        invitation = _invitation(code)
        address_of(url)
        try:
            name = msgspec.convert(gateway, orders.Name)
        except msgspec.ValidationError as error:
            raise HighwallError(f"{gateway!a:.80} is no gateway's name: 1 to 64 letters, digits or _ . : -") from error
        wanted = Enrolment(url, name, invitation.code)
        held, pending = self.identity(), self.pending()
        if held is not None and not again:
            der = ssl.PEM_cert_to_DER_cert(held.ca.read_text(encoding="ascii"))
            same = invitation.matches(hashlib.sha256(der).digest())
            what = "by this very twin" if same else "by a twin with ANOTHER CA than the code names"
            raise HighwallError(f"this gateway is enrolled as {held.gateway} {what}; to replace that, add --again")
        if pending is not None and not again:
            before = _invitation(pending.code)
            if before.fingerprint != invitation.fingerprint:
                raise HighwallError(
                    "this gateway asks a twin with another CA for its approval; to leave it, add --again"
                )
            if pending.gateway != name:
                raise HighwallError(f"this gateway asks to be called {pending.gateway}; to change that, add --again")
        elif pending is not None and pending != wanted:
            disk.remove(self._pending)
        _make_request(self._pending, wanted)
        return wanted

    async def ask(self) -> EnrolReply:
        """Send the pending request once. An approval makes the identity, a refusal ends the enrolment.

        Raises LinkError where the twin was not reached, HighwallError where it is not the twin of the code.
        """
        wanted = self.pending()
        if wanted is None:
            raise HighwallError("nothing is being asked for; begin with `highwall gateway enroll URL CODE`")
        invitation = _invitation(wanted.code)
        address = _below(wanted.url, "enroll")
        chain = await shown_chain(address, tls.stranger_context(), tls.presented)
        ca = tls.find_ca(chain, invitation, str(address))
        return await self._send(self._pending, wanted, address, ca, tls.context_for(ca), invitation.secret)

    async def wait(self, say: Callable[[str], None]) -> Identity:
        """Ask until the twin has decided, with back-off. Raises HighwallError when it refuses."""
        wait, told = self._pace.first, ""
        while True:
            try:
                reply = await self.ask()
            except LinkError as error:
                news, least = str(error), 0.0
            else:
                held = self.identity()
                if reply.state == "approved" and held is not None:
                    return held
                news, least = plain(reply.text) or "waiting for a person to approve this gateway", reply.wait
            if news != told:
                say(news)
            told = news
            await asyncio.sleep(min(max(least, self._random.uniform(wait / 2, wait)), self._pace.most))
            wait = min(2 * wait, self._pace.most)

    def renewal_due(self) -> bool:
        """Whether a third or less of the certificate's life is left."""
        held = self.identity()
        return held is not None and self._now().wall / 1e6 > held.ends - (held.ends - held.begins) / 3

    async def renew(self) -> EnrolReply:
        """Ask once for a certificate of a new key, vouched for by the one held, which stays until the new one is there.

        Raises like `ask`.
        """
        held = self.identity()
        if held is None:
            raise HighwallError("there is no certificate to renew; `highwall gateway enroll URL CODE` asks for one")
        wanted = Enrolment(held.url, held.gateway, "")
        if disk.load_state(self._renewal / "enrolment.json", Enrolment) != wanted:
            disk.remove(self._renewal)
        _make_request(self._renewal, wanted)
        ca = held.ca.read_text(encoding="ascii")
        return await self._send(self._renewal, wanted, _below(held.url, "renew"), ca, held.context(), "")

    async def _send(
        self, asking: Path, wanted: Enrolment, address: Address, ca: str, context: ssl.SSLContext, secret: str
    ) -> EnrolReply:
        request = EnrolRequest(orders.VERSION, wanted.gateway, (asking / "request.pem").read_text("ascii"), secret)
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        check, body = tls.check_peer(self._now), orders.to_json(request)
        async with exchange("POST", address, context, check, headers=headers, body=body) as answer:
            data = await answer.body(orders.MOST_BYTES)
        if answer.status >= 500 or answer.status == 429:
            raise LinkError(f"{address} answers {answer.status}; it may be better later")
        if answer.status != 200:
            raise HighwallError(f"{address} answers {answer.status}; is it the address that came with the code?")
        try:
            reply = orders.from_json(EnrolReply, data)
        except ProtocolError as error:
            raise HighwallError(f"{address}: {error}") from error
        if reply.state == "approved":
            self._accept(asking, wanted, ca, reply.certificate)
        elif reply.state == "refused":
            disk.remove(asking)
            raise HighwallError(f"the twin refuses {wanted.gateway}: {plain(reply.text) or 'it does not say why'}")
        return reply

    def _accept(self, asking: Path, wanted: Enrolment, ca: str, chain: str) -> None:
        """Make the answer the identity, once it is a certificate of our key and name by that CA, valid now."""
        key = (asking / "key.pem").read_bytes()
        mine = _checked_chain(chain, ca, key, wanted.gateway, self._now())
        begins, ends = mine.not_valid_before_utc.timestamp(), mine.not_valid_after_utc.timestamp()
        name = f"held-{hashlib.sha256(chain.encode()).hexdigest()[:16]}"
        held, before = self._folder / name, (self._folder / "current").resolve()
        disk.remove(self._folder / f".{name}.new")
        fresh = self._folder / f".{name}.new"
        fresh.mkdir(mode=0o700)
        disk.save(fresh / "key.pem", key, 0o600)
        disk.save(fresh / "certificate.pem", chain.encode("ascii"))
        disk.save(fresh / "ca.pem", ca.encode("ascii"))
        disk.save_state(fresh / "about.json", About(wanted.gateway, wanted.url, begins, ends))
        if not held.is_dir():  # else the power went between the next two steps, the last time
            fresh.rename(held)
        disk.point(self._folder / "current", name)
        for left in (asking, fresh, *([before] if before.name.startswith("held-") and before != held else [])):
            disk.remove(left)

    def _now(self) -> Stamp:
        """The clock, never behind the day from which our own certificate is valid."""
        at, held = self._clock(), self.identity()
        floor = 0 if held is None else int(held.begins * 1e6)
        return msgspec.structs.replace(at, wall=max(at.wall, floor))


def _below(url: str, last: str) -> Address:
    """The address of a page below the twin's."""
    address = address_of(url)
    return Address(address.host, address.port, f"{address.path.rstrip('/')}/{last}")


def _invitation(code: str) -> Invitation:
    try:
        return invitation_of(code)
    except ProtocolError as error:
        raise HighwallError(str(error)) from error


def _make_request(asking: Path, wanted: Enrolment) -> None:
    """Fill the folder `asking` with key, request and enrolment; what is there already stays as it is."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
    from cryptography.x509.oid import NameOID

    asking.mkdir(mode=0o700, parents=True, exist_ok=True)
    key_file, request_file = asking / "key.pem", asking / "request.pem"
    if not key_file.exists():
        fresh = ec.generate_private_key(ec.SECP256R1())  # P-256, which every TLS stack and broker takes
        disk.save(key_file, fresh.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), 0o600)
    if not request_file.exists():
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, wanted.gateway)])
        request = x509.CertificateSigningRequestBuilder().subject_name(subject)
        signed = request.sign(_private(key_file.read_bytes()), hashes.SHA256())
        disk.save(request_file, signed.public_bytes(Encoding.PEM))
    disk.save_state(asking / "enrolment.json", wanted, 0o600)


def _private(pem: bytes) -> "EllipticCurvePrivateKey":
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(pem, None)
    except (ValueError, TypeError) as error:
        raise HighwallError("this gateway's private key is damaged; enroll again with --again") from error
    if not isinstance(key, EllipticCurvePrivateKey):
        raise HighwallError("this gateway's private key is not one that it made; enroll again with --again")
    return key


def _checked_chain(chain: str, ca: str, key: bytes, gateway: str, at: Stamp) -> "Certificate":
    """The first certificate of `chain` (PEM), once the chain leads from our key and name to the CA."""
    from cryptography import x509
    from cryptography.exceptions import InvalidSignature
    from cryptography.x509.oid import NameOID

    wrong = "the twin approves, but the certificate it sends"
    try:
        found = x509.load_pem_x509_certificates(chain.encode("ascii"))
        above = [*found[1:_MOST_CHAIN], x509.load_pem_x509_certificate(ca.encode("ascii"))]
        for each, issuer in zip(found, above, strict=False):
            if not issuer.extensions.get_extension_for_class(x509.BasicConstraints).value.ca:
                raise ValueError("an issuer in it is no CA")
            each.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature, x509.ExtensionNotFound) as error:
        raise HighwallError(f"{wrong} does not lead to its CA ({error})") from error
    mine = found[0]
    names = [attribute.value for attribute in mine.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    if mine.public_key() != _private(key).public_key():
        raise HighwallError(f"{wrong} is for another key")
    if names != [gateway]:
        raise HighwallError(f"{wrong} is for {', '.join(map(str, names))!a:.80}, not for {gateway}")
    for each in (*found, above[-1]):
        tls.check_validity(each, at)
    return mine
