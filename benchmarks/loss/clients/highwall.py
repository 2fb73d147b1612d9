"""Our own twin client, as `highwall gateway run` starts it, with its defaults; the ledger acknowledges as a twin does.

The twin keeps an entry once, however often it comes: that is half of the protocol, so duplicates are counted behind it.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks.loss.ledger import Arrival
from twin_client.protocol.dialects.highwall import batch_in
from twin_client.protocol.ranges import ranges_of
from twin_client.protocol.records import VERSION, Acknowledgement, Gap, Reading, pack
from twin_client.protocol.tags import Frame

TOPICS = ["mine/bench/up"]
COUNTED, FIRST = "bench-tag", "first-tag"  # numbers from the second one only show that the client is up
UNCOUNTED = 90_000_000

_known: set[tuple[str, int]] = set()  # entries, by epoch and number


def encode(number: int) -> bytes:
    """One reading as a tag's frame; a tag counts from 0."""
    tag, seq = (COUNTED, number - 1) if number < UNCOUNTED else (FIRST, number - UNCOUNTED)
    return Frame(tag, 1, seq, {"strain": 1.0 + number % 997 / 1000}).to_bytes()


def read(topic: str, payload: bytes) -> Arrival:
    """Numbers in a batch, those that it owns up to, and its acknowledgement."""
    batch = batch_in(payload)
    arrival = Arrival()
    for entry in batch.entries:
        if (batch.epoch, entry.seq) in _known:
            continue
        _known.add((batch.epoch, entry.seq))
        record = entry.record
        if isinstance(record, Reading):
            arrival.numbers.append(record.tag_seq + (1 if record.tag == COUNTED else UNCOUNTED))
        elif isinstance(record, Gap):
            arrival.declared += [
                ((lost.first or 0) + 1, lost.last + 1) for lost in record.lost if lost.subject == COUNTED
            ]
    seqs = tuple(ranges_of(entry.seq for entry in batch.entries))
    arrival.answer = (f"mine/{batch.gateway}/ack", pack(Acknowledgement(VERSION, batch.gateway, batch.epoch, seqs)))
    return arrival


def prepare(folder: Path, line: str, broker: int, say: Callable[[str], None]) -> tuple[list[str], dict[str, str]]:
    """Write its settings into `folder`; the command that starts it there, and what its environment adds."""
    _known.clear()
    (folder / "data").mkdir(parents=True)
    settings = [
        'gateway = "bench"',
        'folder = "data"',
        f'destination = {{host = "127.0.0.1", port = {broker}}}',
        "uplink = {tls = false}",
        f'tags = {{"{COUNTED}" = {{type = "extensometer"}}, "{FIRST}" = {{}}}}',
        f'serial = {{ports = [{{name = "line", url = {json.dumps(line)}}}]}}',
    ]
    (folder / "gateway.toml").write_text("\n".join(settings) + "\n", encoding="utf-8")
    return [sys.executable, "-m", "highwall", "gateway", "run", "--config", "gateway.toml"], {"PYTHONPATH": _root()}


def _root() -> str:
    return str(Path(__file__).resolve().parents[3])
