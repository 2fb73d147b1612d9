"""thingsboard-gateway from the package index, in an environment of its own, reading the line with its serial extension.

Settings are its defaults but for these, each in its favour or needed here: the SQLite store, which is the one that
keeps readings over a restart; no rate limits; no remote configuration, shell or statistics, which need its own server.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks.loss.ledger import Arrival
from targets.runtime.errors import HighwallError

VERSION = "3.8.5"
TOPICS = ["v1/gateway/telemetry", "v1/devices/me/rpc/request/+"]
LIMITS = b'{"maxInflightMessages": 100, "rateLimits": {}, "gatewayRateLimits": {}}'  # what its server would say: none
WIDTH = 8  # digits of a reading's number, in front of its value


def encode(number: int) -> bytes:
    """One reading as a line of text."""
    return b"%0*d%+.3f\r\n" % (WIDTH, number, 1.0 + number % 997 / 1000)


def read(topic: str, payload: bytes) -> Arrival:
    """Numbers in one message of the gateway API; without an answer about limits it would send nothing."""
    if topic.startswith("v1/devices/me/rpc/request/"):
        return Arrival(answer=(topic.replace("request", "response"), LIMITS))
    said = json.loads(payload)
    entries = [entry for device in said.values() if isinstance(device, list) for entry in device]
    return Arrival([int(entry["values"]["seq"]) for entry in entries if "seq" in entry.get("values", {})])


def prepare(folder: Path, line: str, broker: int, say: Callable[[str], None]) -> tuple[list[str], dict[str, str]]:
    """Write its settings into `folder`; the command that starts it there, and what its environment adds."""
    python = _environment(say)
    config = folder / "config"
    config.mkdir(parents=True, exist_ok=True)
    (folder / "logs").mkdir(exist_ok=True)
    (folder / "data").mkdir(exist_ok=True)
    gateway = {
        "thingsboard": {
            "host": "127.0.0.1",
            "port": broker,
            "remoteShell": False,
            "remoteConfiguration": False,
            "statistics": {"enable": False},
            "checkConnectorsConfigurationInSeconds": 3600,
            "security": {"type": "accessToken", "accessToken": "bench"},
            "qos": 1,
            "rateLimits": "0:0,",
            "dpRateLimits": "0:0,",
            "messagesRateLimits": "0:0,",
            "deviceMessagesRateLimits": "0:0,",
            "deviceRateLimits": "0:0,",
            "deviceDpRateLimits": "0:0,",
        },
        "storage": {
            "type": "sqlite",
            "data_file_path": "./data/data.db",
            "messages_ttl_check_in_hours": 1,
            "messages_ttl_in_days": 7,
            "max_read_records_count": 1000,
        },
        "connectors": [
            {"name": "line", "type": "serial", "class": "SerialConnector", "configuration": "serial.json"},
        ],
    }
    serial = {
        "name": "line",
        "logLevel": "ERROR",
        "devices": [
            {
                "name": "T1",
                "type": "extensometer",
                "port": line,
                "baudrate": 115200,
                "converter": "SerialUplinkConverter",
                "telemetry": [
                    {"key": "seq", "type": "int", "toByte": WIDTH},
                    {"key": "strain", "type": "float", "fromByte": WIDTH},
                ],
                "attributes": [],
            }
        ],
    }
    logs = {
        "version": 1,
        "disable_existing_loggers": False,
        "handlers": {"file": {"class": "logging.FileHandler", "filename": "./logs/gateway.log", "level": "WARNING"}},
        "loggers": {},
        "root": {"level": "WARNING", "handlers": ["file"]},
    }
    for name, settings in (("tb_gateway.json", gateway), ("serial.json", serial), ("logs.json", logs)):
        (config / name).write_text(json.dumps(settings, indent=1), encoding="utf-8")
    return [str(python), "-m", "thingsboard_gateway.tb_gateway"], {"TB_GW_CONFIG_DIR": str(config)}


def _environment(say: Callable[[str], None]) -> Path:
    """Its own environment, made once."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    folder = cache / "highwall" / "peers" / f"thingsboard-gateway-{VERSION}"
    python = folder / "bin" / "python"
    if not (folder / "complete").exists():
        say(f"installing thingsboard-gateway {VERSION} into {folder}, once")
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        wanted = [f"thingsboard-gateway=={VERSION}", "pyserial"]
        install = [str(python), "-m", "pip", "install", "-q", *wanted]
        done = subprocess.run(install, check=False, capture_output=True, text=True)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["pip said nothing"])[-1]
            raise HighwallError(f"cannot install thingsboard-gateway {VERSION}: {last}")
        (folder / "complete").touch()
    return python
