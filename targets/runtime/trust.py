"""Whether the key that signed an artifact is one this site trusts today: unsigned, untrusted or trusted.

What is trusted is a .pub file (one key, without an end) or a trust file in TOML, of several keys, so that
they can be rotated: the new key is added before the old one ends, and a lost one is taken out.

    [[key]]
    name = "ann"
    public = "BASE64"     # the last word of ann.pub
    from = 2026-01-01
    until = 2027-06-30    # the last day; may be left out

The dates are held against the day of verification, never against a date in the signature: that would make
two builds of the same inputs differ, and whoever steals a key could write any day they like.
"""

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, Final, Literal

from targets.runtime.artifact import Artifact
from targets.runtime.errors import HighwallError
from targets.runtime.signing import PublicKey, Signature, check_name, from_base64, parse_public, read_text

State = Literal["unsigned", "untrusted", "trusted"]
WARN_DAYS: Final = 30  # long enough to mail a new key to a mine and have somebody drive out with it
_CLOCK: Final = "by this machine's clock"  # a Pi has no battery behind its own


@dataclass(frozen=True)
class TrustedKey:
    """A key and the first and last day on which it is believed; None: without such an end."""

    key: PublicKey
    first: date | None = None
    last: date | None = None


@dataclass(frozen=True)
class Trust:
    """The keys a site believes, each held once; `where` names the file they came from."""

    keys: tuple[TrustedKey, ...]
    where: str = "the trust file"


@dataclass(frozen=True)
class Standing:
    """What a signature is worth. `reason` says why it is not trusted, `warning` what will soon need doing.

    `key` has the label of the trust file where it is listed there, else the one the signature claims.
    """

    state: State
    key: PublicKey | None = None
    reason: str = ""
    warning: str = ""


def load_trust(path: Path) -> Trust:
    """The keys in a .pub or trust file; raises HighwallError, naming `path` and the key at fault."""
    text = read_text(path, "`highwall keygen` makes NAME.pub, a trust file is written by hand")
    if text.lstrip().startswith("highwall-key-"):
        return Trust((TrustedKey(parse_public(text, str(path))),), str(path))
    if "PRIVATE KEY-----" in text:
        raise HighwallError(f"{path} is a private key, which only signs; trust its NAME.pub and keep this one secret")
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise HighwallError(f"{path} is neither a .pub file nor a trust file in TOML: {error}") from error
    return Trust(_keys(raw, str(path)), str(path))


def judge(signature: Signature | None, trust: Trust, today: date) -> Standing:
    """Hold a signature against the trusted keys on the day `today`."""
    if signature is None:
        mend = "`highwall sign FILE --key NAME.key` signs it where it was built"
        return Standing("unsigned", reason=f"it is not signed, so nobody vouches for it; {mend}")
    listed = next((known for known in trust.keys if known.key.raw == signature.key.raw), None)
    if listed is None:
        claimed = signature.key
        names = ", ".join(known.key.name for known in trust.keys)
        who = f"a key that calls itself {claimed.name}, fingerprint {claimed.fingerprint}"
        known = f"which {trust.where} does not trust (it trusts {names})"
        mend = "have it signed by one of those, or add this key once its owner has read you the fingerprint"
        return Standing("untrusted", claimed, f"it is signed by {who}, {known}; {mend}")
    key, first, last = listed.key, listed.first, listed.last
    if first is not None and today < first:
        reason = f"it is signed by {key.name}, a key that is trusted only from {first}; today is {today} {_CLOCK}"
        return Standing("untrusted", key, f"{reason}, set that or wait")
    if last is not None and today > last:
        reason = f"it is signed by {key.name}, a key that was trusted only until {last}; today is {today} {_CLOCK}"
        return Standing("untrusted", key, f"{reason}, sign it again with a key that is still valid")
    return Standing("trusted", key, warning=_warning(key.name, last, today))


def trusted(artifact: Artifact, trust: Trust, today: date | None = None, where: str = "the artifact") -> Standing:
    """How `artifact` is trusted on the day `today` (UTC now unless given).

    Raises HighwallError, beginning with `where`, for one that is unsigned or whose key is not trusted.
    """
    standing = judge(artifact.signature, trust, today or today_utc())
    if standing.state != "trusted":
        raise HighwallError(f"{where}: {standing.reason}")
    return standing


def today_utc() -> date:
    """The day it is by this machine's clock."""
    return datetime.now(UTC).date()


def _warning(name: str, last: date | None, today: date) -> str:
    if last is None or (left := (last - today).days) >= WARN_DAYS:
        return ""
    days = {0: "today", 1: "tomorrow"}.get(left, f"in {left} days")
    return f"key {name} ends {days}, on {last}; sign with a new key and add it to the trust file before then"


def _keys(raw: dict[str, Any], where: str) -> tuple[TrustedKey, ...]:
    _check_table(raw, ("key",), where)
    tables = raw["key"]
    if not isinstance(tables, list) or not tables or not all(isinstance(table, dict) for table in tables):
        raise HighwallError(f"{where}: key is not a list of tables; each key begins with a line [[key]]")
    keys = [_key(table, f"{where}: key {number}") for number, table in enumerate(tables, 1)]
    for number, key in enumerate(keys, 1):
        for earlier in keys[: number - 1]:
            if key.key.name == earlier.key.name:
                raise HighwallError(f"{where}: key {number}: name {key.key.name} is taken; give each key its own")
            if key.key.raw == earlier.key.raw:
                raise HighwallError(f"{where}: key {number}: public is that of {earlier.key.name}; remove one")
    return tuple(keys)


def _key(table: dict[str, Any], where: str) -> TrustedKey:
    _check_table(table, ("name", "public", "from"), where, optional=("until",))
    check_name(table["name"], f"{where}: name")
    public = from_base64(table["public"], 32, f"{where}: public (the last word of a .pub file)")
    first, last = _day(table, "from", where), _day(table, "until", where)
    if first is not None and last is not None and last < first:
        raise HighwallError(f"{where}: until {last} is before from {first}; swap or mend them")
    return TrustedKey(PublicKey(table["name"], public), first, last)


def _day(table: dict[str, Any], name: str, where: str) -> date | None:
    value = table.get(name)
    if value is not None and type(value) is not date:  # a datetime is a date, too, but one with an hour
        raise HighwallError(f"{where}: {name} is no date; write it as 2026-01-31, without quotes or a time")
    return value


def _check_table(table: dict[str, Any], wanted: Sequence[str], where: str, optional: Sequence[str] = ()) -> None:
    known = [*wanted, *optional]
    for name in table:
        if name not in known:
            raise HighwallError(f"{where}: {ascii(name)[:60]} is unknown; known are {', '.join(known)}")
    for name in wanted:
        if name not in table:
            raise HighwallError(f"{where}: {name} is missing; known are {', '.join(known)}")
