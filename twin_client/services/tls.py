"""TLS as a gateway needs it: only its own CA is trusted, and a clock that a power cut set back locks nobody out.

OpenSSL checks chain and name and leaves validity to `check_validity`, because a Pi can wake weeks back and would
take a certificate of yesterday for one of the future. What is given up is little: while nothing has set the clock,
a certificate may seem not to have begun yet, by at most `LENIENCE`. None is accepted after its end by the latest
time that the gateway knows to have passed, and chain and name are never left out.
"""

import hashlib
import ssl
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from targets.runtime.errors import HighwallError
from twin_client.protocol.invitation import Invitation
from twin_client.protocol.records import ClockQuality, Stamp

if TYPE_CHECKING:
    from cryptography.x509 import Certificate

LENIENCE: Final = 366 * 86_400.0  # seconds; a gateway may have lain in a store for a season, not for years
SKEW: Final = 300.0  # seconds between two clocks that are both right
_NO_CHECK_TIME: Final = ssl.VerifyFlags(0x200000)  # X509_V_FLAG_NO_CHECK_TIME, for which the ssl module has no name


def context_for(ca: str, certificate: Path | None = None, key: Path | None = None) -> ssl.SSLContext:
    """A client's context that trusts the CA in `ca` (PEM) alone and shows `certificate`, where there is one.

    The validity of certificates is not checked in it: call `check_peer` before the first byte is sent.
    Raises HighwallError where a file is missing or damaged.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # which requires a certificate, and checks the host's name
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.verify_flags |= _NO_CHECK_TIME
    try:
        context.load_verify_locations(cadata=ca)
        if certificate is not None:
            context.load_cert_chain(certificate, key)
    except (OSError, ValueError) as error:
        where = certificate or "the CA's certificate"
        raise HighwallError(f"{where} or its key cannot be used ({error}); enroll again with --again") from error
    return context


def stranger_context() -> ssl.SSLContext:
    """A context that believes anybody. It is for looking at a chain: nothing may be sent through it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def presented(connection: Any) -> list[bytes]:
    """The certificates (DER) that the far end of an ssl.SSLObject or SSLSocket showed, its own first."""
    if hasattr(connection, "get_unverified_chain"):  # from Python 3.13 on
        return list(connection.get_unverified_chain())
    import _ssl

    return [each.public_bytes(_ssl.ENCODING_DER) for each in connection._sslobj.get_unverified_chain() or ()]


def find_ca(chain: Iterable[bytes], invitation: Invitation, where: str) -> str:
    """The CA (PEM) in a chain (DER) that an invitation names. Raises HighwallError where there is none."""
    shown = list(chain)
    for der in shown:
        if invitation.matches(hashlib.sha256(der).digest()):
            return ssl.DER_cert_to_PEM_cert(der)
    what = f"{where} shows {len(shown)} certificates, and none has the fingerprint in the code"
    raise HighwallError(f"{what}; the code was not sent. Is the address right, and the code from that very twin?")


def check_peer(now: Callable[[], Stamp]) -> Callable[[Any], None]:
    """A check for an open connection (SSLObject or SSLSocket): every certificate shown is valid by the clock `now`.

    It asks Python's own reader of certificates, because the one that enrolment needs takes 8 MB of memory.
    """

    def check(connection: Any) -> None:
        at = now()
        for certificate in connection._sslobj.get_unverified_chain() or ():
            said = certificate.get_info()
            begins, ends = (ssl.cert_time_to_seconds(said[name]) for name in ("notBefore", "notAfter"))
            _check_times(", ".join(value for part in said["subject"] for _, value in part), begins, ends, at)

    return check


def check_validity(certificate: "Certificate", at: Stamp) -> None:
    """Raise HighwallError unless `certificate` is valid at `at`, with the lenience that a lost clock needs."""
    begins, ends = (when.timestamp() for when in (certificate.not_valid_before_utc, certificate.not_valid_after_utc))
    _check_times(certificate.subject.rfc4514_string(), begins, ends, at)


def _check_times(name: str, begins: float, ends: float, at: Stamp) -> None:
    seconds = at.wall / 1e6
    by = f"by this gateway's clock it is {day(seconds)}"
    if seconds > ends:
        raise HighwallError(f"the certificate of {name!a:.80} ended on {day(ends)}, {by}; it must be renewed")
    lost = at.clock == ClockQuality.LOST
    if begins - seconds > (LENIENCE if lost else SKEW):
        mend = "set the clock" if lost else "its issuer's clock or this one is wrong"
        raise HighwallError(f"the certificate of {name!a:.80} begins on {day(begins)}, {by}; {mend}")


def day(seconds: float) -> str:
    """A time (seconds since 1970) in words of UTC."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M")
