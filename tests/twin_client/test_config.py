"""gateway.toml: a mistyped name and a number that would spin or refuse everything are faults, named in one line."""

import types
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import msgspec
import pytest

from targets.runtime.errors import HighwallError
from twin_client.config import Settings, load
from twin_client.protocol.orders import VERSION, Answer, Command
from twin_client.protocol.records import ClockQuality, Stamp
from twin_client.services.journal import Journal, Memory


def parts(kind: Any, where: str = "") -> Iterator[tuple[str, Any]]:
    """All structs and numbers of a settings type, with their names."""
    if get_origin(kind) is Annotated and get_args(kind)[0] in (int, float):
        yield where, kind
    elif isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        yield where, kind
        for field in msgspec.structs.fields(kind):
            yield from parts(field.type, f"{where}.{field.encode_name}".lstrip("."))
    elif kind in (int, float):
        yield where, kind
    else:
        for each in get_args(kind):
            if each is not ... and not isinstance(each, str | types.NoneType):
                yield from parts(each, where)


def refusal(folder: Path, content: str) -> str:
    path = folder / "gateway.toml"
    path.write_text(f'gateway = "pit-7"\n{content}')
    with pytest.raises(HighwallError) as caught:
        load(path)
    said = str(caught.value)
    assert said.startswith(f"{path}: ") and "\n" not in said
    return said.removeprefix(f"{path}: ")


def test_no_section_of_the_file_takes_a_name_that_it_does_not_know() -> None:
    found = dict(parts(Settings))
    assert {"services.asking", "services.shadow", "serial.ports", "uplink.retry", "outbox", "motion"} <= set(found)
    structs = {name: kind for name, kind in found.items() if isinstance(kind, type) and kind not in (int, float)}
    assert [name for name, kind in structs.items() if not kind.__struct_config__.forbid_unknown_fields] == []


def test_every_number_of_the_file_has_a_least_value() -> None:
    found = dict(parts(Settings))
    assert {"services.asking.first", "services.memory.bytes", "watch.duty", "health"} <= set(found)
    without = []
    for name, kind in found.items():
        if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
            continue
        metas = [meta for meta in getattr(kind, "__metadata__", ()) if isinstance(meta, msgspec.Meta)]
        if all(meta.ge is None and meta.gt is None for meta in metas):
            without.append(name)
    assert without == []


@pytest.mark.parametrize("section", ["asking", "trial", "memory", "link", "shadow", "probation"])
def test_a_mistyped_name_is_named(tmp_path: Path, section: str) -> None:
    assert refusal(tmp_path, f"[services.{section}]\nlimt = 60.0\n") == f"services.{section}.limt: is unknown"


@pytest.mark.parametrize(
    ("section", "name", "number"),
    [
        ("asking", "first", "-5"),  # asks without pause
        ("asking", "first", "0.0"),
        ("asking", "first", "nan"),
        ("asking", "first", "inf"),
        ("asking", "most", "0"),
        ("memory", "most", "-1"),  # refuses every command
        ("memory", "most", "0"),
        ("memory", "bytes", "1000"),
        ("memory", "count", "-1"),
        ("memory", "margin", "-1.0"),
        ("memory", "margin", "inf"),
        ("link", "reserve", "-1"),
        ("link", "reserve", "9_000_000_000_000"),  # refuses every model
        ("link", "tries", "0"),
    ],
)
def test_a_number_that_cannot_work_is_named(tmp_path: Path, section: str, name: str, number: str) -> None:
    said = refusal(tmp_path, f"[services.{section}]\n{name} = {number}\n")
    assert said.startswith(f"services.{section}.{name}: ")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[services.asking]\nfirst = 400\n", "services.asking: first, 400, is more than most, 300"),
        ("[services.memory]\nmost = 1000\n", "services.memory: count, 1000, is not less than most, 1000"),
    ],
)
def test_two_numbers_that_do_not_fit_together_are_named(tmp_path: Path, content: str, said: str) -> None:
    assert refusal(tmp_path, content) == said


def test_the_least_memory_that_is_taken_takes_commands_for_ever(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.sqlite", Memory(count=3, margin=0.0, most=4))
    for now in range(20):
        command = Command(VERSION, "pit-7", str(now), "ann", 2 * now, 2 * now + 1, "restart")
        assert journal.received(command, 2 * now)
        at = Stamp(2 * now, 0, "boot", ClockQuality.NETWORK)
        journal.answered(Answer(VERSION, "pit-7", command.id, "done", "", at))
    journal.close()
