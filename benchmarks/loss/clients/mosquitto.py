"""A mosquitto of the gateway's own that bridges to the twin's, fed from the line by a few lines of Python.

The usual way to keep readings without a gateway program: QoS 1 all along, a session that outlives connections, an
unlimited queue saved every second, and a short keepalive so that a dead link is noticed.
"""

import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks.loss.broker import free_port
from benchmarks.loss.ledger import Arrival

TOPICS = ["mine/bench/readings"]


def encode(number: int) -> bytes:
    """One reading as a line of text."""
    return b"%d,%+.3f\n" % (number, 1.0 + number % 997 / 1000)


def read(topic: str, payload: bytes) -> Arrival:
    """The number of one reading; a message holds one."""
    return Arrival([int(payload.partition(b",")[0])])


def prepare(folder: Path, line: str, broker: int, say: Callable[[str], None]) -> tuple[list[str], dict[str, str]]:
    """Write its settings into `folder`; the command that starts it there, and what its environment adds."""
    port = free_port()
    data = folder.resolve() / "data"
    data.mkdir()
    settings = [
        f"listener {port} 127.0.0.1",
        "allow_anonymous true",
        "persistence true",
        f"persistence_location {data}/",
        "autosave_interval 1",
        "max_queued_messages 0",
        "max_inflight_messages 100",
        "user root",
        "log_type error",
        "connection twin",
        f"address 127.0.0.1:{broker}",
        f"topic {TOPICS[0]} out 1",
        "cleansession false",
        "keepalive_interval 5",
        "restart_timeout 1",
        "notifications false",
        "bridge_attempt_unsubscribe false",
    ]
    (folder / "bridge.conf").write_text("\n".join(settings) + "\n", encoding="utf-8")
    command = [sys.executable, "-m", "benchmarks.loss.publish", "bridge.conf", str(port), line, TOPICS[0]]
    return command, {"PYTHONPATH": str(Path(__file__).resolve().parents[3])}
