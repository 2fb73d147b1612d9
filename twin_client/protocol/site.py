"""What a twin may set of a gateway, as one struct that is validated whole.

It says what to watch, when, how sensitively and where to send it, by the names that the gateway's own file gave to
its ports and cameras. Paths, devices, programs, keys and folders have no place in it: whoever holds the twin must
not thereby hold the gateway's machine.
"""

import types
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import msgspec

from twin_client.protocol.orders import Name

Clock = Annotated[
    str, msgspec.Meta(pattern=r"\A(?:[01][0-9]|2[0-3]):[0-5][0-9]\Z", description="a time of day such as 06:30")
]
Day = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
Host = Annotated[
    str,
    msgspec.Meta(
        pattern=r"\A[A-Za-z0-9](?:[A-Za-z0-9.:-]{0,251}[A-Za-z0-9])?\Z", description="a host's name or address"
    ),
]
Dialect = Annotated[str, msgspec.Meta(pattern=r"\A[a-z][a-z0-9_]{0,31}\Z", description="a dialect's name")]
Degrees90 = Annotated[float, msgspec.Meta(ge=-90, le=90)]
Degrees180 = Annotated[float, msgspec.Meta(ge=-180, le=180)]
Metres = Annotated[float, msgspec.Meta(ge=-1000, le=9000)]
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]


class TimeWindow(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """From `begin` to before `end` by the site's clock; past midnight where `end` is not later."""

    begin: Clock
    end: Clock
    days: tuple[Day, ...] = ()  # on which it begins; none: on all


class Place(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where the gateway stands, WGS 84."""

    latitude: Degrees90
    longitude: Degrees180
    height: Metres | None = None  # above the ellipsoid


class Destination(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where records go. Who is there must still show a certificate of the CA that the gateway was enrolled with."""

    host: Host
    port: Annotated[int, msgspec.Meta(ge=1, le=65535)] = 8883
    dialect: Dialect = "highwall"


class Sensitivity(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The paper's two limits; None: the gateway's own."""

    fainting: Annotated[float, msgspec.Meta(gt=0, le=3600)] | None = None  # seconds a worn tag lies still
    noise: Annotated[float, msgspec.Meta(ge=0.5, le=20)] | None = None  # dB of signal strength, one standard deviation


class Camera(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a camera of the gateway is used; None: as the gateway's own file says."""

    enabled: bool = True
    period: Annotated[float, msgspec.Meta(ge=1, le=86_400)] | None = None  # seconds between images
    threshold: Share | None = None  # None: the artifact's
    thumbnail: Annotated[int, msgspec.Meta(ge=0, le=65_536)] | None = None  # most bytes; 0: none


class Port(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a serial port of the gateway is read; None: as the gateway's own file says."""

    enabled: bool = True
    baud: Annotated[int, msgspec.Meta(ge=300, le=4_000_000)] | None = None
    format: Literal["frames", "json", "csv"] | None = None


class Site(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole of it. Rules and sensor calibrations are in the form of the rules' own module, which checks them."""

    windows: tuple[TimeWindow, ...] = ()  # when images are captured; none: always
    utc_offset: Annotated[int, msgspec.Meta(ge=-840, le=840)] = 0  # minutes east; fixed, so no night is lived twice
    place: Place | None = None
    destination: Destination | None = None  # None: that of the gateway's own file
    sensitivity: Sensitivity = Sensitivity()
    rules: dict[str, Any] = {}
    calibrations: dict[str, Any] = {}
    cameras: dict[Name, Camera] = {}
    ports: dict[Name, Port] = {}


def faults(kind: Any, value: Any, where: str = "") -> list[str]:
    """All that keeps `value` (dicts and lists) from being a `kind`, each as `FIELD: what`; none: it can be converted.

    msgspec itself stops at the first, which makes a person at a slow link send a file once per mistake.
    """
    inside = [kind for kind in _alternatives(kind) if kind is not type(None)]
    found = _inner_faults(inside[0], value, where) if len(inside) == 1 else []
    if found:
        return found
    try:
        msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        what, _, _ = str(error).partition(" - at `")
        if " matching regex " in what:  # nobody should have to read one
            what = f"{value!a:.60} is not {_form(kind)}"
        return [f"{where}: {what}" if where else what]
    return []


def _inner_faults(kind: Any, value: Any, where: str) -> list[str]:
    origin, arguments = get_origin(kind), get_args(kind)
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct) and isinstance(value, dict):
        return _field_faults(kind, value, where)
    if origin is dict and isinstance(value, dict):
        return [
            fault
            for key, item in value.items()
            for fault in faults(arguments[0], key, _at(where, key)) + faults(arguments[1], item, _at(where, key))
        ]
    if origin is tuple and arguments[-1] is ... and isinstance(value, list | tuple):
        return [fault for at, item in enumerate(value) for fault in faults(arguments[0], item, f"{where}[{at}]")]
    return []


def _field_faults(kind: type[msgspec.Struct], value: dict[Any, Any], where: str) -> list[str]:
    found = []
    fields = {field.encode_name: field for field in msgspec.structs.fields(kind)}
    for name, field in fields.items():
        if name in value:
            found += faults(field.type, value[name], _at(where, name))
        elif field.required:
            found.append(f"{_at(where, name)}: is missing")
    if kind.__struct_config__.forbid_unknown_fields:
        found += [f"{_at(where, name)}: is unknown" for name in value if name not in fields]
    return found


def _alternatives(kind: Any) -> tuple[Any, ...]:
    return get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)


def _form(kind: Any) -> str:
    """What a string of `kind` looks like, in words."""
    words = (meta.description for each in _alternatives(kind) for meta in getattr(each, "__metadata__", ()))
    return next(filter(None, words), "in the form it must have")


def _at(where: str, name: object) -> str:
    word = name if isinstance(name, str) and name.isidentifier() else ascii(name)[:70]
    return f"{where}.{word}" if where else str(word)
