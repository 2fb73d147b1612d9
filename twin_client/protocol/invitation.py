"""The invitation a supervisor reads out to a new gateway: a one-time secret and the CA's fingerprint, as one code.

Forty symbols in groups of four, from an alphabet without 0, O, 1 and I; upper or lower case, blanks and hyphens as
one likes. 28 symbols hold the first 140 bits of the SHA-256 of the CA's certificate (DER), 11 hold the secret of
55 bits, and the last one checks the rest: every code with one wrong symbol, or with two neighbours swapped, is
refused where it is typed. Those 31 of 32 codes with several mistakes that are refused here, too, spare a
connection; the rest fail at the fingerprint or at the twin.
"""

from dataclasses import dataclass, field
from typing import Final

from twin_client.protocol.errors import ProtocolError

ALPHABET: Final = "23456789ABCDEFGHJKLMNPQRSTUVWXYZ"  # 32 symbols, 5 bits each
FINGERPRINT: Final = 28  # symbols
SECRET: Final = 11
SECRET_BYTES: Final = 7  # of randomness that `invite` asks for; their last bit is left out
LENGTH: Final = FINGERPRINT + SECRET + 1
_GROUP: Final = 4
_START: Final = 1  # not 0, so that a code of nothing but the first symbol is refused, too


@dataclass(frozen=True)
class Invitation:
    """What a code holds: both parts as symbols of the alphabet."""

    fingerprint: str
    secret: str = field(repr=False)

    def matches(self, digest: bytes) -> bool:
        """Whether `digest`, the 32 bytes of a certificate's SHA-256, is the one the code was printed for."""
        return fingerprint_of(digest) == self.fingerprint

    @property
    def code(self) -> str:
        """The code as it is printed."""
        symbols = self.fingerprint + self.secret
        symbols += ALPHABET[_times_two(_check(symbols))]
        return "-".join(symbols[at : at + _GROUP] for at in range(0, LENGTH, _GROUP))


def invite(digest: bytes, random: bytes) -> Invitation:
    """The invitation to the CA whose certificate has the SHA-256 `digest` (32 bytes), from 7 bytes of randomness."""
    if len(digest) != 32 or len(random) != SECRET_BYTES:
        raise ValueError(f"an invitation takes 32 and {SECRET_BYTES} bytes, not {len(digest)} and {len(random)}")
    return Invitation(fingerprint_of(digest), _symbols(random, SECRET))


def fingerprint_of(digest: bytes) -> str:
    """The first 140 bits of a SHA-256, as symbols."""
    return _symbols(digest, FINGERPRINT)


def invitation_of(text: str) -> Invitation:
    """The invitation in a code as somebody typed it. Raises ProtocolError that says what is wrong with it."""
    symbols = "".join(letter for letter in text.upper() if not letter.isspace() and letter != "-")
    for at, letter in enumerate(symbols):
        if letter not in ALPHABET:
            group = at // _GROUP + 1
            hint = "; 0, O, 1 and I never stand in a code" if letter in "0O1I" else ""
            raise ProtocolError(f"the code has {letter!a} in its group {group}{hint}; read it again")
    if len(symbols) != LENGTH:
        groups = f"{LENGTH // _GROUP} groups of {_GROUP}"
        raise ProtocolError(f"the code has {len(symbols)} symbols, not {LENGTH} in {groups}; read it again")
    if _check(symbols) != 0:
        raise ProtocolError("a symbol of the code is wrong, or two are swapped; read it again")
    return Invitation(symbols[:FINGERPRINT], symbols[FINGERPRINT:-1])


def _symbols(data: bytes, count: int) -> str:
    """The first 5 `count` bits of `data`."""
    bits = int.from_bytes(data, "big") >> (8 * len(data) - 5 * count)
    return "".join(ALPHABET[bits >> 5 * at & 31] for at in range(count - 1, -1, -1))


def _check(symbols: str) -> int:
    """The symbols as the polynomial they are over the field of 32 elements, at its generator 2.

    Neighbours have weights that differ, and none is 0: one wrong symbol, or a swap, always changes the value.
    """
    value = _START
    for letter in symbols:
        value = _times_two(value) ^ ALPHABET.index(letter)
    return value


def _times_two(value: int) -> int:
    """In the field of 32 elements, by the primitive polynomial x^5 + x^2 + 1."""
    return value << 1 ^ (0b100101 if value & 16 else 0)
