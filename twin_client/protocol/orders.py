"""What the twin asks of a gateway and what comes back: commands and answers, desired and reported state, enrolment.

Like the records these are immutable, versioned and coded as MessagePack on the wire and JSON for people. Nothing
here can name a file, a device or a program of the gateway: what a twin may ask for is what these structs hold.
"""

from typing import Annotated, Any, Final, Literal, TypeVar

import msgspec

from twin_client.protocol.errors import ProtocolError
from twin_client.protocol.records import Stamp

VERSION: Final = 1  # of these messages; raised when an older reader would misread a newer writer
MOST_BYTES: Final = 262_144  # of one message: a configuration with all its rules is a tenth of it

Name = Annotated[  # of a gateway, tag, camera or port
    str,
    msgspec.Meta(
        pattern=r"\A[A-Za-z0-9][A-Za-z0-9_.:-]{0,63}\Z",
        description="a name: 1 to 64 letters, digits or _ . : -, the first a letter or digit",
    ),
]
Line = Annotated[str, msgspec.Meta(min_length=1, max_length=200)]
Text = Annotated[str, msgspec.Meta(max_length=2000)]
Number = Annotated[int, msgspec.Meta(ge=1, le=2**53)]
Micros = Annotated[int, msgspec.Meta(ge=0, le=2**53)]  # microseconds since 1970, UTC
Sha256 = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{64}\Z")]


class Command(msgspec.Struct, frozen=True):
    """One thing to do, once. `id` is its idempotency key: the same id is the same command, however often it comes."""

    version: int
    gateway: Name
    id: Line
    issuer: Line  # the person or program that answers for it
    issued: Micros
    expires: Micros  # not begun after this
    name: Line  # one of ORDERS, or of a newer twin
    arguments: dict[str, Any] = {}

    def __post_init__(self) -> None:
        if self.expires <= self.issued:
            raise ValueError("expires is not after issued")


class Answer(msgspec.Struct, frozen=True):
    """What became of a command. There is one for each, and it never changes."""

    version: int
    gateway: str
    id: str
    outcome: Literal["done", "refused", "failed"]  # refused: nothing was begun
    text: str
    at: Stamp
    figures: dict[str, float] = {}


class Desired(msgspec.Struct, frozen=True):
    """How the twin wants a gateway set: whole, never in part. `number` only grows."""

    version: int
    gateway: Name
    number: Number
    settings: dict[str, Any]  # of a `Site`, undecoded so that every fault in it can be named at once


class Refusal(msgspec.Struct, frozen=True):
    """Why the desired state of this number is not in force."""

    number: int
    why: str


class Reported(msgspec.Struct, frozen=True):
    """How a gateway really is set."""

    version: int
    gateway: str
    number: int  # of the desired state in force; 0: none, the gateway's own defaults
    settings: dict[str, Any]
    trial: bool  # in force until the twin was reached with it, or until time runs out
    at: Stamp
    refused: Refusal | None = None  # the last that was not taken, or was rolled back


class EnrolRequest(msgspec.Struct, frozen=True):
    """A gateway asks for its certificate; again and again, with the same request, until a person has decided."""

    version: int
    gateway: Name
    request: str  # PKCS10 signing request, PEM; its subject is the gateway's name
    secret: str = ""  # one-time, from the invitation; empty: a renewal, vouched for by the certificate held


class EnrolReply(msgspec.Struct, frozen=True):
    """The twin's word on a signing request."""

    version: int
    state: Literal["pending", "refused", "approved"]
    text: Text = ""
    wait: Annotated[float, msgspec.Meta(ge=0, le=86_400)] = 0.0  # seconds before it pays to ask again
    certificate: str = ""  # PEM: the gateway's, then what lies between it and the CA


class CaptureNow(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Take and judge an image; no camera named: with every one."""

    camera: Name | None = None


class PairTag(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Take records of a tag from now on."""

    tag: Name  # its barcode
    type: Annotated[str, msgspec.Meta(max_length=64)] = ""  # person and machine have their motion judged; or any word
    note: Annotated[str, msgspec.Meta(max_length=200)] = ""


class UnpairTag(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Take no more records of a tag."""

    tag: Name


class SetSensorCalibration(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Read a quantity of a tag by another curve from now on; the curve is in the form of the rules."""

    tag: Name
    quantity: Name
    calibration: dict[str, Any]


class SendDiagnostics(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Say how the gateway fares, now."""


class UpdateModel(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Fetch, prove and switch to an artifact."""

    url: Annotated[str, msgspec.Meta(pattern=r"\Ahttps://[!-~]{1,1000}\Z")]
    sha256: Sha256  # of the whole file
    size: Annotated[int, msgspec.Meta(ge=1, le=256 * 2**20)]  # bytes
    shadow: bool = True  # False: the issuer answers for a model that cannot be compared with the one in use


class Restart(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """End the agent and let the system start it again."""


class Reconfigure(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The desired state, for a twin that can send commands only."""

    number: Number
    settings: dict[str, Any]


class Order(msgspec.Struct, frozen=True):
    """What a gateway knows of a command before it runs it."""

    arguments: type[msgspec.Struct]
    limit: float  # seconds it may run
    harmless: bool = False  # may run though the clock is lost, when nobody can say that it has not expired
    repeatable: bool = False  # twice does the same as once: begun again after the agent died in it
    ends_agent: bool = False  # done when the agent is back


ORDERS: Final[dict[str, Order]] = {
    "capture_now": Order(CaptureNow, limit=300, harmless=True),  # twice would be two images
    "pair_tag": Order(PairTag, limit=30, repeatable=True),
    "unpair_tag": Order(UnpairTag, limit=30, repeatable=True),
    "set_sensor_calibration": Order(SetSensorCalibration, limit=30, repeatable=True),
    "send_diagnostics": Order(SendDiagnostics, limit=120, harmless=True, repeatable=True),
    "update_model": Order(UpdateModel, limit=6 * 3600, repeatable=True),  # goes on where its download stopped
    "restart": Order(Restart, limit=60, ends_agent=True),
    "reconfigure": Order(Reconfigure, limit=60, repeatable=True),
}

Message = Command | Answer | Desired | Reported | EnrolRequest | EnrolReply
Kind = TypeVar("Kind", Command, Answer, Desired, Reported, EnrolRequest, EnrolReply)

_pack = msgspec.msgpack.Encoder()
_json = msgspec.json.Encoder()
_WORDS: Final = {
    Command: "a command",
    Answer: "an answer",
    Desired: "a desired state",
    Reported: "a reported state",
    EnrolRequest: "an enrolment request",
    EnrolReply: "an enrolment reply",
}


def pack(message: Message) -> bytes:
    """As MessagePack."""
    return _pack.encode(message)


def to_json(message: Message) -> bytes:
    """As JSON."""
    return _json.encode(message)


def unpack(kind: type[Kind], data: bytes) -> Kind:
    """A message of `kind` from MessagePack. Raises ProtocolError where it is none, too long or of a newer version."""
    return _decoded(kind, data, msgspec.msgpack.decode)


def from_json(kind: type[Kind], data: bytes) -> Kind:
    """A message of `kind` from JSON. Raises ProtocolError where it is none, too long or of a newer version."""
    return _decoded(kind, data, msgspec.json.decode)


def arguments_of(command: Command) -> msgspec.Struct:
    """The arguments of a command, checked. Raises ProtocolError for an unknown name and for arguments not its own."""
    order = ORDERS.get(command.name)
    if order is None:
        raise ProtocolError(f"no command {ascii(command.name)[:60]}; known are {', '.join(ORDERS)}")
    try:
        return msgspec.convert(command.arguments, order.arguments)
    except msgspec.ValidationError as error:
        raise ProtocolError(f"{command.name}: {error}") from error


def _decoded(kind: type[Kind], data: bytes, decode: Any) -> Kind:
    what = _WORDS[kind]
    if len(data) > MOST_BYTES:
        raise ProtocolError(f"not {what}: {len(data)} bytes, at most {MOST_BYTES} are read")
    try:
        message: Kind = decode(data, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise ProtocolError(f"not {what}: {error}") from error
    if not 1 <= message.version <= VERSION:
        raise ProtocolError(f"version {message.version} of {what}; versions 1 to {VERSION} are read here")
    return message
