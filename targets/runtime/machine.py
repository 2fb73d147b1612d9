"""The machine at hand: what it is, how it fares, and what others ask of it meanwhile.

HIGHWALL_SYSROOT names a folder that stands in for / where /proc and /sys are read.
"""

import os
import platform
import shutil
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from targets.runtime.errors import plain

STANDS_IN: Final = "HIGHWALL_SYSROOT"
# get_throttled: the bit says now, 16 bits higher it says that it happened since boot (Raspberry Pi documentation).
THROTTLING: Final = ("under-voltage", "clock capped", "throttled", "soft temperature limit")
# Of one name, as a cloud's processors have, some multiply 8 bits four times as fast as others: these tell them apart.
VECTORS: Final = ("asimd", "asimddp", "asimdhp", "i8mm", "avx2", "avx_vnni", "avx512f", "avx512_vnni", "amx_int8")
ENGINES: Final = ("onnxruntime", "ai-edge-litert", "tflite-runtime")  # distributions, of which one at least is there


@dataclass(frozen=True)
class Machine:
    """What does not change while it runs; empty where the system does not say. Its name in the network is not asked."""

    model: str  # of the device tree, or of the processor
    device_tree: str
    cpu_implementer: str
    cpu_part: str
    vectors: str  # those of VECTORS that it has
    architecture: str
    kernel: str
    python: str
    cores: int
    packages: dict[str, str]


@dataclass(frozen=True)
class State:
    """What changes: `second` counts from the begin of its phase; the words of THROTTLING, None where nobody knows."""

    second: float
    governor: str | None
    clock_mhz: int | None
    temperature_c: float | None
    load: float | None  # runnable tasks, the mean of the last minute
    throttled_now: tuple[str, ...] | None
    throttled_since_boot: tuple[str, ...] | None


class Busy:
    """How many cores others use from here on: all busy time of the machine but our own and our children's."""

    def __init__(self) -> None:
        self._began, self._all, self._own = time.monotonic(), _busy_ticks(), _own_seconds()

    def others(self, children_s: float = 0.0) -> float | None:
        """Cores, as a mean; None where the system does not say. children_s: CPU seconds of children that still run."""
        ticks, wall = _busy_ticks(), time.monotonic() - self._began
        if ticks is None or self._all is None:
            return None
        seconds = (ticks - self._all) / os.sysconf("SC_CLK_TCK") - (_own_seconds() - self._own) - children_s
        return round(max(0.0, seconds / wall), 3)


def this_machine() -> Machine:
    """The facts of the machine that this process runs on."""
    from importlib import metadata  # slow to import, and whoever looks for engines imports this file

    tree, cpu = _text("/proc/device-tree/model"), _text("/proc/cpuinfo")
    packages = {}
    for name in ("numpy", *ENGINES):
        try:
            packages[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    flags = (_entry(cpu, "Features") or _entry(cpu, "flags")).split()
    return Machine(
        model=tree or _entry(cpu, "model name") or platform.machine(),
        device_tree=tree,
        cpu_implementer=_entry(cpu, "CPU implementer"),
        cpu_part=_entry(cpu, "CPU part"),
        vectors=" ".join(name for name in VECTORS if name in flags),
        architecture=platform.machine(),
        kernel=platform.release(),
        python=platform.python_version(),
        cores=os.cpu_count() or 1,
        packages=packages,
    )


def other_machine(device_tree: str, cpu_part: str, wanted_tree: str, wanted_part: str) -> str | None:
    """Why a machine of this device tree model and CPU part is not the one wanted, None where it is."""
    if wanted_tree and not device_tree.startswith(wanted_tree):
        return f"this is a {plain(device_tree) or 'machine without a device tree'}, not a {wanted_tree}"
    if wanted_part and cpu_part != wanted_part:
        return (
            f"its CPU part is {plain(cpu_part) or 'unknown'}, a {wanted_tree or 'board of that kind'} has {wanted_part}"
        )
    return None


def look(since: float | None = None) -> State:
    """The machine's state now; `since` is a time.monotonic()."""
    clock = _clock()  # first, before what asking for the rest takes lets it fall
    load, heat = _text("/proc/loadavg").split(), _text("/sys/class/thermal/thermal_zone0/temp")
    now, since_boot = throttling(_vcgencmd("get_throttled")) or (None, None)
    return State(
        second=0.0 if since is None else round(time.monotonic() - since, 1),
        governor=_text("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor") or None,
        clock_mhz=clock,
        temperature_c=int(heat) / 1000 if heat.lstrip("-").isdigit() else None,
        load=float(load[0]) if load else None,
        throttled_now=now,
        throttled_since_boot=since_boot,
    )


def throttling(said: str) -> tuple[tuple[str, ...], tuple[str, ...]] | None:
    """`throttled=0x50005` in words: what is so now, and what happened since boot; None where it is not that."""
    name, _, value = said.strip().partition("=")
    try:
        bits = int(value, 16)
    except ValueError:
        return None
    now, since = (tuple(word for at, word in enumerate(THROTTLING) if bits >> at + shift & 1) for shift in (0, 16))
    return (now, since) if name == "throttled" else None


def throttled(before: State, samples: Sequence[State]) -> tuple[str, ...]:
    """What the firmware did since `before`: seen at one of the samples, or remembered by the last and not before."""
    seen = {word for sample in samples for word in sample.throttled_now or ()}
    seen |= set(samples[-1].throttled_since_boot or ()) - set(before.throttled_since_boot or ())
    return tuple(word for word in THROTTLING if word in seen)


def conditions(state: State) -> str:
    """A state in words; empty where the machine says nothing."""
    words = [] if state.governor is None else [state.governor]
    words += [] if state.clock_mhz is None else [f"{state.clock_mhz} MHz"]
    words += [] if state.temperature_c is None else [f"{state.temperature_c:.1f} C"]
    words += [] if state.load is None else [f"load {state.load:g}"]
    return ", ".join([*words, *(state.throttled_now or ())])


def _clock() -> int | None:
    """MHz: the firmware's word on a Pi, because the kernel shows what it asked for, else the fastest core's."""
    _, _, hertz = _vcgencmd("measure_clock", "arm").partition("=")
    if hertz.strip().isdigit():
        return round(int(hertz) / 1e6)
    folder = _place("/sys/devices/system/cpu")
    found = [_file(path) for path in folder.glob("cpu[0-9]*/cpufreq/scaling_cur_freq")]
    return max((round(int(text) / 1000) for text in found if text.isdigit()), default=None)


def _vcgencmd(*arguments: str) -> str:
    """What the Pi's firmware answers; empty off a Pi, and for a user who may not ask."""
    program = shutil.which("vcgencmd")
    if program is None:
        return ""
    try:
        done = subprocess.run([program, *arguments], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return ""
    return done.stdout if done.returncode == 0 else ""


def _busy_ticks() -> int | None:
    """user, nice, system, irq, softirq and steal of all cores (proc_stat(5)); idle and iowait are no work."""
    words = _text("/proc/stat").partition("\n")[0].split()
    if len(words) < 9 or words[0] != "cpu":
        return None
    user, nice, system, _, _, irq, softirq, steal = map(int, words[1:9])
    return user + nice + system + irq + softirq + steal


def _own_seconds() -> float:
    return sum(os.times()[:4])  # user and system, ours and our children's


def _place(path: str) -> Path:
    return Path(os.environ.get(STANDS_IN, "") + path)


def _text(path: str) -> str:
    return _file(_place(path))


def _file(path: Path) -> str:
    """A file of the kernel's, empty where there is none."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip().strip("\0")
    except OSError:
        return ""


def _entry(cpuinfo: str, key: str) -> str:
    rows = (line.partition(":") for line in cpuinfo.splitlines())
    return next((value.strip() for name, _, value in rows if name.strip() == key), "")
