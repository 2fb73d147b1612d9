"""The hosts' processes as torchrun starts them, and one job after another done by all of them at once."""

import socket
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from benchmarks.edge import frames
from benchmarks.edge.hosts import CLOUD, Hosts
from benchmarks.edge.jobs import Job
from benchmarks.edge.work import CONTROL, PATIENCE_S
from targets.runtime.errors import HighwallError

ROOT: Final = Path(__file__).parents[2]
TORCHRUN_PORT: Final = 29500


class Crew:
    """One process on each of `hosts`; `with` starts them, holds them to their quota, and ends them.

    Raises HighwallError with the last line of a host's log where it fails or takes longer than 300 s.
    """

    def __init__(self, hosts: Hosts) -> None:
        self.hosts = hosts
        self._stack = ExitStack()
        self._controls: dict[int, socket.socket] = {}
        self._processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> "Crew":
        self.folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="highwall-edge-")))
        try:
            self._start()
        except BaseException:
            self._stop()
            raise
        self.hosts.limit()  # not earlier: to import torch at half a core takes long and is nobody's figure
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stop()

    def do(self, job: Job) -> list[dict[str, Any]]:
        """What each host found, by rank. All begin together, once each has made ready."""
        for control in self._controls.values():
            frames.send_json(control, asdict(job))
        self._hear()
        for control in self._controls.values():
            frames.send_json(control, {})
        return self._hear()

    def _start(self) -> None:
        path = self.folder / "control"
        listener = self._stack.enter_context(socket.socket(socket.AF_UNIX))
        listener.bind(str(path))
        listener.listen()
        listener.settimeout(PATIENCE_S)
        cloud = self.hosts.all[CLOUD]
        for host in self.hosts.all:
            torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=1", "--monitor-interval=5"]
            torchrun += [f"--nnodes={len(self.hosts.all)}", f"--node-rank={host.rank}"]
            torchrun += [f"--master-addr={cloud.address}", f"--master-port={TORCHRUN_PORT}"]
            environment = {
                "GLOO_SOCKET_IFNAME": host.interface,
                "OMP_NUM_THREADS": "1",
                "PYTHONPATH": str(ROOT),
                CONTROL: str(path),
            }
            with self._log(host.rank).open("wb") as log:
                command = [*torchrun, "-m", "benchmarks.edge.work"]
                self._processes.append(self.hosts.start(host, command, environment, log))
        for _ in self.hosts.all:
            control = self._accepted(listener)
            control.settimeout(PATIENCE_S)
            try:
                self._controls[int(frames.receive_json(control)["rank"])] = control
            except (HighwallError, OSError) as error:
                raise HighwallError(f"a host did not start: {self._last_words() or error}") from error

    def _accepted(self, listener: socket.socket) -> socket.socket:
        try:
            return listener.accept()[0]
        except OSError as error:
            raise HighwallError(f"a host did not start: {self._last_words() or error}") from error

    def _hear(self) -> list[dict[str, Any]]:
        try:
            return [frames.receive_json(self._controls[rank]) for rank in sorted(self._controls)]
        except (HighwallError, OSError) as error:
            raise HighwallError(f"a host failed at its job ({error}): {self._last_words()}") from error

    def _last_words(self) -> str:
        """The first line that names an error, in any host's log."""
        logs = [self._log(host.rank).read_text(errors="replace").splitlines() for host in self.hosts.all]
        return next((line.strip() for log in logs for line in log if "Error" in line), "")

    def _log(self, rank: int) -> Path:
        return self.folder / f"{rank}.log"

    def _stop(self) -> None:
        for control in self._controls.values():
            control.close()
        for process in self._processes:
            process.kill()
            process.wait()
        self._stack.close()
