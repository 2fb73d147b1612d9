"""Registration: how a gateway gets its name and certificate, and keeps the certificate alive.

The key is made here and never leaves. What leaves is a signing request, with a one-time secret, and only to a twin
whose certificate chains to the very CA whose fingerprint came with that secret. Until a person there has approved,
the gateway has no identity: it records and sends nothing.

The folder, all of it replaceable by enrolling again:

    current -> held-0123456789abcdef/     the identity in force, changed by one rename
    held-.../  key.pem (0600)  certificate.pem  ca.pem  about.json
    pending/   key.pem (0600)  request.pem  enrolment.json (0600)
    renewal/   the same, while a new certificate is asked for with the old one

The agent and a person at the keyboard may ask with the same request: whoever changes the folder has it locked, and an
answer counts only while its request is still there.
"""

import asyncio
import fcntl
import hashlib
import os
import random
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec

from targets.runtime.errors import HighwallError, plain
from twin_client.protocol import orders
from twin_client.protocol.errors import ProtocolError
from twin_client.protocol.invitation import Invitation, invitation_of
from twin_client.protocol.orders import EnrolReply, EnrolRequest
from twin_client.protocol.records import Stamp
from twin_client.services import folder as disk
from twin_client.services import papers, tls
from twin_client.services.https import Address, LinkError, address_of, exchange, shown_chain


class Pace(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How often to ask, seconds: each wait is up to twice the one before, and never all gateways at once."""

    first: Annotated[float, msgspec.Meta(ge=0.1, le=3600)] = 2.0
    most: Annotated[float, msgspec.Meta(ge=0.1, le=86_400)] = 300.0

    def __post_init__(self) -> None:
        if self.first > self.most:
            raise ValueError(f"first, {self.first:g}, is more than most, {self.most:g}")


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
        self._before: Identity | None = None  # who this gateway was when it began to ask for something else
        self._told = ""  # of the renewal, the last time

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
        with self._alone():
            held, pending = self.identity(), self.pending()
            if held is not None and not again:
                der = ssl.PEM_cert_to_DER_cert(held.ca.read_text(encoding="ascii"))
                same = invitation.matches(hashlib.sha256(der).digest())
                what = "by this very twin" if same else "by a twin with ANOTHER CA than the code names"
                raise HighwallError(f"this gateway is enrolled as {held.gateway} {what}; to replace that, add --again")
            if pending is not None and not again:
                if _invitation(pending.code).fingerprint != invitation.fingerprint:
                    raise HighwallError(
                        "this gateway asks a twin with another CA for its approval; to leave it, add --again"
                    )
                if pending.gateway != name:
                    raise HighwallError(
                        f"this gateway asks to be called {pending.gateway}; to change that, add --again"
                    )
            elif pending is not None and pending != wanted:
                disk.remove(self._pending)
            self._request(self._pending, wanted)
            self._before = held
        return wanted

    async def ask(self) -> EnrolReply:
        """Send the pending request once. An approval makes the identity, a refusal ends the enrolment.

        It is approved, too, where another process has been told so. Raises LinkError where the twin
        was not reached, HighwallError where it is not the twin of the code.
        """
        with self._alone():
            wanted = self.pending()
            request = "" if wanted is None else self._request(self._pending, wanted)  # what the card has lost of it
        try:
            if wanted is None:
                what = "nothing is being asked for, or it was refused"
                raise HighwallError(f"{what}; begin with `highwall gateway enroll URL CODE`")
            invitation = _invitation(wanted.code)
            address = _below(wanted.url, "enroll")
            chain = await shown_chain(address, tls.stranger_context(), tls.presented)
            ca = tls.find_ca(chain, invitation, str(address))
            context = tls.context_for(ca)
            return await self._send(self._pending, wanted, request, address, ca, context, invitation.secret)
        except HighwallError:
            reply = self._told_to_another(wanted)
            if reply is None:
                raise
            return reply

    def _request(self, asking: Path, wanted: Enrolment) -> str:
        """The request (PEM) in the folder `asking`, beside it what it is for."""
        request = papers.make_request(asking, wanted.gateway)
        if disk.load_state(asking / "enrolment.json", Enrolment) != wanted:
            disk.save_state(asking / "enrolment.json", wanted, 0o600)
        return request

    def _told_to_another(self, wanted: Enrolment | None) -> EnrolReply | None:
        """Where another process has had the answer, or asks for something else now: what that comes to."""
        with self._alone():
            held, pending = self.identity(), self.pending()
        if pending is not None:
            return None if pending == wanted else EnrolReply(orders.VERSION, "pending")
        return None if held is None or held == self._before else EnrolReply(orders.VERSION, "approved")

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
        with self._alone():
            if disk.load_state(self._renewal / "enrolment.json", Enrolment) != wanted:
                disk.remove(self._renewal)
            request = self._request(self._renewal, wanted)
        ca = held.ca.read_text(encoding="ascii")
        address = _below(held.url, "renew")
        return await self._send(self._renewal, wanted, request, address, ca, held.context(), "")

    async def renew_and_say(self, say: Callable[[str], None]) -> None:
        """Ask once for a renewal, and say what came of it, but nothing twice in a row."""
        held = self.identity()
        until = "" if held is None else f", good until {tls.day(held.ends)},"
        try:
            reply = await self.renew()
        except HighwallError as error:
            news = f"the certificate{until} is not renewed: {error}"
        else:
            if reply.state == "approved":
                self._told = ""
                say("the certificate is renewed")
                return
            news = f"the certificate{until} is not renewed yet: {plain(reply.text) or 'a person must approve it'}"
        if news != self._told:
            say(f"{news}; it is asked for again")
        self._told = news

    async def _send(
        self,
        asking: Path,
        wanted: Enrolment,
        request: str,
        address: Address,
        ca: str,
        context: ssl.SSLContext,
        secret: str,
    ) -> EnrolReply:
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        check = tls.check_peer(self._now)
        body = orders.to_json(EnrolRequest(orders.VERSION, wanted.gateway, request, secret))
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
        with self._alone():
            still = papers.request_in(asking) == request
            if reply.state == "refused":
                if still:
                    disk.remove(asking)
                raise HighwallError(f"the twin refuses {wanted.gateway}: {plain(reply.text) or 'it does not say why'}")
            if not still:
                raise HighwallError("this gateway asks no more for what it asked for")
            if reply.state == "approved":
                self._accept(asking, wanted, ca, reply.certificate)
        return reply

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """The folder for this process alone, for as long as the disk takes and never while the twin is waited for."""
        self._folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self._folder, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _accept(self, asking: Path, wanted: Enrolment, ca: str, chain: str) -> None:
        """Make the answer the identity, once it is a certificate of our key and name by that CA, valid now."""
        key = (asking / "key.pem").read_bytes()
        mine = papers.checked(chain, ca, key, wanted.gateway, self._now())
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
        old = [before] if before.name.startswith("held-") and before != held else []
        for left in (asking, self._renewal, fresh, *old):  # a renewal of what was before is none of this
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
