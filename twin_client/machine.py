"""What the machine says of itself: memory, temperature, room on the card."""

import os
from contextlib import suppress
from pathlib import Path

_ZONE = Path("/sys/class/thermal/thermal_zone0/temp")


def memory() -> int | None:
    """Bytes of this process that are in memory."""
    with suppress(OSError, ValueError, IndexError):
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return None


def temperature() -> float | None:
    """Of the processor, degrees Celsius; None: nothing says it."""
    with suppress(OSError, ValueError):
        return int(_ZONE.read_text(encoding="ascii")) / 1000
    return None


def gauges(folder: Path) -> dict[str, float]:
    """Those of the health record: bytes, degrees Celsius, seconds; what cannot be read is absent."""
    found: dict[str, float | None] = {"rss": memory(), "temperature": temperature()}
    with suppress(OSError):
        disk = os.statvfs(folder)
        found["disk_free"] = disk.f_bavail * disk.f_frsize
    with suppress(OSError):
        found["load"] = round(os.getloadavg()[0], 2)
    return {name: float(value) for name, value in found.items() if value is not None}
