"""Ed25519 keys and the signature an artifact may carry: who vouches for the bytes of its digests.json.

A private key is a PEM file (PKCS8, mode 0600) under a first line `highwall-private-key-1 NAME`, which other
tools skip. A public key is one line of text, `highwall-key-1 NAME BASE64`, so that it can be mailed. NAME is
a label that nothing vouches for: only the key itself is ever compared.
"""

import base64
import binascii
import hashlib
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn

from targets.runtime.errors import HighwallError
from targets.runtime.manifest import from_json, to_json

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

MEMBER: Final = "signature.json"
_ALGORITHM: Final = "ed25519"
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@+-]{0,63}")
_PUBLIC_MARK: Final = "highwall-key-1"
_PRIVATE_MARK: Final = "highwall-private-key-1"
_PEM: Final = "-----BEGIN PRIVATE KEY-----"
_MOST_BYTES: Final = 65_536  # of a key or trust file, and of signature.json; all are far smaller


@dataclass(frozen=True)
class PublicKey:
    """The 32 bytes that check a signature, and the label they go by."""

    name: str
    raw: bytes

    @property
    def line(self) -> str:
        """The text of a .pub file, without its line end."""
        return f"{_PUBLIC_MARK} {self.name} {to_base64(self.raw)}"

    @property
    def fingerprint(self) -> str:
        """128 bits of the key's SHA-256, in a form two people can read to each other."""
        digest = hashlib.sha256(self.raw).hexdigest()
        return "-".join(digest[at : at + 4] for at in range(0, 32, 4))


@dataclass(frozen=True)
class SigningKey:
    """A private key: whoever has the 32 bytes of `seed` signs as `name`."""

    name: str
    seed: bytes = field(repr=False)

    @property
    def public(self) -> PublicKey:
        """What others check this key's signatures with."""
        return PublicKey(self.name, _private(self.seed).public_key().public_bytes_raw())

    def sign(self, message: bytes) -> "Signature":
        """The signature over `message`; Ed25519 gives the same one every time."""
        return Signature(self.public, _private(self.seed).sign(message))


@dataclass(frozen=True)
class Signature:
    """What a key says of a message: 64 bytes that only the holder of its private half can make."""

    key: PublicKey
    value: bytes

    def matches(self, message: bytes) -> bool:
        """Whether the key signed exactly `message`."""
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

        try:
            Ed25519PublicKey.from_public_bytes(self.key.raw).verify(self.value, message)
        except (InvalidSignature, ValueError):  # ValueError: 32 bytes that are no point of the curve
            return False
        return True


def generate(name: str) -> tuple[str, str]:
    """The texts of a new key's private and public file; raises HighwallError for a name that is no label."""
    check_name(name, "the key's name (--name)")
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    private = Ed25519PrivateKey.generate()
    pem = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode("ascii")
    public = PublicKey(name, private.public_key().public_bytes_raw())
    return f"{_PRIVATE_MARK} {name}\n{pem}", f"{public.line}\n"


def write_pair(out: Path, name: str) -> PublicKey:
    """Make a key and write `out`.key (mode 0600) and `out`.pub; neither may exist.

    Raises HighwallError if one does or cannot be written; then there is neither.
    """
    private, public = generate(name)
    key, pub = key_paths(out)
    for path in (key, pub):
        if os.path.lexists(path):
            raise HighwallError(f"{path} exists; a key is never overwritten, choose another --out")
    _write_new(key, private, 0o600)
    try:
        _write_new(pub, public, 0o644)
    except BaseException:
        key.unlink()
        raise
    return parse_public(public, str(pub))


def key_paths(out: Path) -> tuple[Path, Path]:
    """The private and public file of the pair called `out`, whose name may itself hold dots."""
    if not out.name:
        raise HighwallError(f"--out {out} is a folder; give the keys a name in it")
    return out.with_name(f"{out.name}.key"), out.with_name(f"{out.name}.pub")


def load_private(path: Path) -> SigningKey:
    """The key in a file of `highwall keygen`, or in another tool's unencrypted Ed25519 PEM (PKCS8).

    The latter is named after its file. Raises HighwallError, naming `path`, for anything else.
    """
    text = read_text(path, "`highwall keygen` makes keys")
    if text.startswith(_PUBLIC_MARK):
        raise HighwallError(f"{path} is a public key; to sign takes the private one, NAME.key")
    if "-----BEGIN ENCRYPTED PRIVATE KEY-----" in text:
        mend = f"`openssl pkey -in {path} -out PLAIN.key` makes a plain copy"
        raise HighwallError(f"{path} is locked with a passphrase, which Highwall cannot ask for; {mend}")
    head, mark, body = text.partition(_PEM)
    if not mark:
        raise HighwallError(f"{path} is no private key in PEM form (PKCS8); `highwall keygen` makes one")
    match head.split():
        case [first, name] if first == _PRIVATE_MARK:
            label = name
        case _:
            label = Path(path).stem
    check_name(label, f"{path}: the key's name")
    return SigningKey(label, _seed(f"{mark}{body}".encode(), path))


def parse_public(text: str, where: str) -> PublicKey:
    """The key in the text of a .pub file, `highwall-key-1 NAME BASE64`; raises HighwallError."""
    words = text.split()
    if not words or words[0] != _PUBLIC_MARK:
        raise HighwallError(f"{where} is no public key this Highwall knows; it begins with {_PUBLIC_MARK}")
    if len(words) != 3:
        raise HighwallError(f"{where} is not one line `{_PUBLIC_MARK} NAME BASE64`; several keys go into a trust file")
    check_name(words[1], f"{where}: the key's name")
    return PublicKey(words[1], from_base64(words[2], 32, f"{where}: the last word"))


def encode_signature(signature: Signature) -> bytes:
    """The bytes of signature.json."""
    stated = {
        "algorithm": _ALGORITHM,
        "name": signature.key.name,
        "public": to_base64(signature.key.raw),
        "signature": to_base64(signature.value),
    }
    return to_json(stated, MEMBER)


def decode_signature(data: bytes, message: bytes, where: str) -> Signature:
    """The signature in signature.json, once it is one of `message`.

    Raises HighwallError, beginning with `where`, if it is malformed or its own key did not sign `message`.
    """
    if len(data) > _MOST_BYTES:
        raise HighwallError(f"{where} is {len(data)} bytes long; a signature takes a few hundred")
    stated = from_json(data, where)
    algorithm = stated.get("algorithm")
    if algorithm != _ALGORITHM:
        raise HighwallError(f"{where}: algorithm {ascii(algorithm)[:40]} is not {_ALGORITHM}; upgrade Highwall")
    wanted = {"algorithm", "name", "public", "signature"}
    for word in sorted(wanted ^ set(stated)):
        fault = "is missing" if word in wanted else "is unknown"
        raise HighwallError(f"{where}: key {ascii(word)[1:-1][:40]} {fault}")
    check_name(stated["name"], f"{where}: name")
    key = PublicKey(stated["name"], from_base64(stated["public"], 32, f"{where}: public"))
    signature = Signature(key, from_base64(stated["signature"], 64, f"{where}: signature"))
    if not signature.matches(message):
        raise HighwallError(f"{where}: key {key.name} did not sign these contents; they or the signature were changed")
    return signature


def check_name(name: object, what: str) -> None:
    """Raise HighwallError, naming `what`, unless `name` is a label: one word without blanks."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        allowed = "1 to 64 letters, digits or _ . @ + -, the first a letter or digit"
        raise HighwallError(f"{what} is {ascii(name)[:80]}; a key's name is {allowed}")


def to_base64(raw: bytes) -> str:
    """Standard base64, padded."""
    return base64.b64encode(raw).decode("ascii")


def from_base64(text: object, length: int, what: str) -> bytes:
    """The `length` bytes that `to_base64` would write as `text`; raises HighwallError, naming `what`."""
    try:
        raw = base64.b64decode(text, validate=True) if isinstance(text, str) else b""
    except (binascii.Error, ValueError):
        raw = b""
    # Base64 has several spellings of the same bytes; one of them is enough.
    if len(raw) != length or to_base64(raw) != text:
        raise HighwallError(f"{what} is not {length} bytes in base64; copy it again")
    return raw


def read_text(path: Path, mend: str) -> str:
    """The text of a key or trust file; raises HighwallError, ending in `mend` where it does not exist."""
    try:
        with Path(path).open("rb") as handle:
            data = handle.read(_MOST_BYTES + 1)
        if len(data) > _MOST_BYTES:
            raise HighwallError(f"{path} is larger than any key or trust file ({_MOST_BYTES} bytes)")
        return data.decode("utf-8").removeprefix("\ufeff")
    except FileNotFoundError as error:
        raise HighwallError(f"{path} does not exist; {mend}") from error
    except OSError as error:
        raise HighwallError(f"cannot read {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise HighwallError(f"{path} is not text, so it is no key and no trust file") from error


def _private(seed: bytes) -> "Ed25519PrivateKey":
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    return Ed25519PrivateKey.from_private_bytes(seed)


def _seed(pem: bytes, path: Path) -> bytes:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        private = load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise HighwallError(f"{path} holds a private key that is damaged; copy it again from its backup") from error
    if not isinstance(private, Ed25519PrivateKey):
        kind = type(private).__name__.removesuffix("PrivateKey").lstrip("_")
        raise HighwallError(f"{path} holds a key of kind {kind}; Highwall signs with Ed25519, see `highwall keygen`")
    return private.private_bytes_raw()


def _write_new(path: Path, text: str, mode: int) -> None:
    """Write a file that must not exist yet.

    Not through `atomic_write`, whose rename replaces what is there: the one thing that must not happen to a key.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    except OSError as error:
        _cannot_write(path, error)
    try:
        with os.fdopen(descriptor, "w", encoding="ascii", newline="\n") as handle:
            handle.write(text)
            handle.flush()
            os.fsync(handle.fileno())
    except BaseException as error:
        path.unlink(missing_ok=True)
        if isinstance(error, OSError):
            _cannot_write(path, error)
        raise


def _cannot_write(path: Path, error: OSError) -> NoReturn:
    raise HighwallError(f"cannot write {path}: {error.strerror or error}; choose another --out") from error
