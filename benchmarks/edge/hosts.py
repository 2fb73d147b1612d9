"""Three hosts on one machine: network namespaces on links that the kernel shapes, each with the same CPU quota.

A star: every edge has one link to the cloud, which forwards between them. The kernel's token bucket (tc tbf) holds both
ends of each link to its bandwidth. A link with delay or loss is a pair of TUN devices with `proxy` between them, any
other a veth pair. On a veth pair the kernel hands over up to 64 KB at once, whose headers are counted once.
"""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Final

from benchmarks.edge.model import Link
from benchmarks.edge.proxy import TUN, Proxy, open_tun
from targets.runtime.errors import HighwallError

PREFIX: Final = "hwedge"
CGROUPS: Final = Path("/sys/fs/cgroup")
# A machine's own choice may be another, and it decides what loss costs. Every kernel has reno, and cubic, the usual
# default, does as reno does where windows are as small as this loss makes them (RFC 9438, section 4.3).
CONGESTION: Final = "reno"
CLOUD: Final = 0
PERIOD_US: Final = 10_000  # short beside the shortest job, or it would end before its host is ever held back
QUEUE_MS: Final = 300  # of tbf, before it drops
_TICK_S: Final = 1 / 100  # a bucket must hold what flows in one tick of the slowest kernel clock (tc-tbf(8))


@dataclass(frozen=True)
class Host:
    """One of them: `interface` is the one that peers reach it by, at `address`."""

    rank: int
    namespace: str
    interface: str
    address: str
    cgroup: Path


class Hosts:
    """The cloud (rank 0) and its edges, all joined by `link`; `with` makes them, and removes them whatever happens.

    cores: the CPU quota of each host once `limit` is called. Raises HighwallError where the machine lacks
    what it takes.
    """

    def __init__(self, link: Link, cores: float, edges: int = 2) -> None:
        self.link, self.cores = link, cores
        name = f"{PREFIX}-{os.getpid()}"
        self.all = tuple(
            Host(
                rank,
                f"{name}-{rank}",
                "edge1" if rank == CLOUD else "uplink",
                "10.77.1.1" if rank == CLOUD else f"10.77.{rank}.2",
                cgroup_root() / f"{name}-{rank}",
            )
            for rank in range(edges + 1)
        )
        self.proxies: list[Proxy] = []
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> "Hosts":
        check()
        sweep()
        try:
            self._make()
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._remove()

    def limit(self) -> None:
        """From now on no host gets more than its quota."""
        quota = round(self.cores * PERIOD_US)
        for host in self.all:
            if _version() == 2:
                (host.cgroup / "cpu.max").write_text(f"{quota} {PERIOD_US}")
            else:
                (host.cgroup / "cpu.cfs_period_us").write_text(str(PERIOD_US))
                (host.cgroup / "cpu.cfs_quota_us").write_text(str(quota))

    def start(
        self, host: Host, command: Sequence[str], environment: Mapping[str, str], log: IO[bytes]
    ) -> subprocess.Popen[bytes]:
        """Run `command` in the host's namespace and under its quota, together with all that it starts."""
        enter = ["sh", "-c", 'echo $$ > "$0" && exec "$@"', str(host.cgroup / "cgroup.procs")]
        return subprocess.Popen(
            [*enter, "ip", "netns", "exec", host.namespace, *command],
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )

    def _make(self) -> None:
        for host in self.all:
            host.cgroup.mkdir()
            _ip("netns", "add", host.namespace)
            _ip("-n", host.namespace, "link", "set", "lo", "up")
            _kernel(host, "net/ipv4/tcp_congestion_control", CONGESTION)
        cloud, *edges = self.all
        _kernel(cloud, "net/ipv4/ip_forward", "1")
        for edge in edges:
            side = f"edge{edge.rank}"
            if self.link.rtt_s or self.link.loss:
                self._radio(cloud, edge, side)
            else:
                near = ["link", "add", edge.interface, "netns", edge.namespace, "type", "veth"]
                _ip(*near, "peer", "name", side, "netns", cloud.namespace)
            for host, interface, last in ((cloud, side, 1), (edge, edge.interface, 2)):
                _ip("-n", host.namespace, "address", "add", f"10.77.{edge.rank}.{last}/24", "dev", interface)
                _ip("-n", host.namespace, "link", "set", interface, "up")
                self._shape(host, interface)
            _ip("-n", edge.namespace, "route", "add", "default", "via", f"10.77.{edge.rank}.1")

    def _radio(self, cloud: Host, edge: Host, side: str) -> None:
        ends = []
        for host, interface in ((edge, edge.interface), (cloud, side)):
            made = f"hw{os.getpid()}{'ab'[host is cloud]}"  # unique on the machine until it lies in its namespace
            ends.append(open_tun(made))
            self._stack.callback(os.close, ends[-1])
            _ip("link", "set", made, "netns", host.namespace)
            _ip("-n", host.namespace, "link", "set", made, "name", interface)
        proxy = Proxy((ends[0], ends[1]), self.link.rtt_s / 2, self.link.loss, edge.rank)
        self.proxies.append(self._stack.enter_context(proxy))

    def _shape(self, host: Host, interface: str) -> None:
        rate, burst = round(self.link.bits_per_s), max(16_000, round(self.link.bits_per_s / 8 * _TICK_S))
        words = ["qdisc", "add", "dev", interface, "root", "tbf", "rate", f"{rate}bit", "burst", f"{burst}b"]
        _run("tc", "-n", host.namespace, *words, "latency", f"{QUEUE_MS}ms")

    def _remove(self) -> None:
        for host in self.all:
            _empty(host.cgroup)
        self._stack.close()
        for host in self.all:
            if Path("/run/netns", host.namespace).exists():
                _ip("netns", "delete", host.namespace)


def check() -> None:
    """Raises HighwallError, in one line, for the first thing that hosts need and this machine lacks."""
    if os.geteuid() != 0:
        raise HighwallError("network namespaces need root; run as root, or with --modelled")
    for program in ("ip", "tc"):
        if shutil.which(program) is None:
            raise HighwallError(f"{program} is not installed (on Debian: apt install iproute2); or run with --modelled")
    if not Path(TUN).exists():
        raise HighwallError(f"{TUN} is missing; load the kernel's module tun, or run with --modelled")
    if _version() is None:
        raise HighwallError(f"no quota: {CGROUPS} has no cpu controller for new groups; run with --modelled")


def cgroup_root() -> Path:
    """Where a group with a CPU quota can be made."""
    return CGROUPS if _version() == 2 else CGROUPS / "cpu"


def sweep() -> None:
    """Remove what killed runs left: their processes, namespaces and groups carry the number of a process now dead."""
    for path in (*Path("/run/netns").glob(f"{PREFIX}-*"), *cgroup_root().glob(f"{PREFIX}-*")):
        owner = re.fullmatch(rf"{PREFIX}-(\d+)-\d+", path.name)
        if owner is None or Path("/proc", owner[1]).exists():
            continue
        if path.is_dir():
            _empty(path)
        else:
            _ip("netns", "delete", path.name)


def _version() -> int | None:
    """Of control groups: 2 or 1, whichever gives new groups a CPU quota, or None."""
    with contextlib.suppress(OSError):
        if "cpu" in (CGROUPS / "cgroup.subtree_control").read_text().split():
            return 2
    return 1 if os.access(CGROUPS / "cpu" / "cpu.shares", os.W_OK) else None


def _empty(group: Path) -> None:
    """End every process of a group of ours, and remove it."""
    for _ in range(100):
        with contextlib.suppress(FileNotFoundError):
            for number in (group / "cgroup.procs").read_text().split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(number), signal.SIGKILL)
        try:
            group.rmdir()
        except FileNotFoundError:
            return
        except OSError:  # busy until the kernel has buried the last of them
            time.sleep(0.05)
        else:
            return
    raise HighwallError(f"{group} still has processes; end them, and remove it with rmdir")


def _kernel(host: Host, setting: str, value: str) -> None:
    _ip("netns", "exec", host.namespace, "sh", "-c", f"echo {value} > /proc/sys/{setting}")


def _ip(*words: str) -> None:
    _run("ip", *words)


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise HighwallError(f"`{' '.join(command)}` failed: {said}")
