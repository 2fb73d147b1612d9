"""A real mosquitto on a port of its own."""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from targets.runtime.errors import HighwallError

START_S = 10.0


class Broker:
    """mosquitto with its configuration and database in `folder`; `with` starts and ends it.

    `listener`: further lines of configuration for its one listener, such as its certificates.
    """

    def __init__(self, folder: Path, listener: Sequence[str] = ()) -> None:
        self.folder, self._listener = folder, listener
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "Broker":
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    def start(self) -> None:
        """Start, or start again on the same port with what its database kept."""
        command = program()
        self.folder.mkdir(parents=True, exist_ok=True)
        settings = [
            f"listener {self.port} 127.0.0.1",
            *self._listener,
            "allow_anonymous true",
            "persistence true",
            f"persistence_location {self.folder.resolve()}/",
            "max_queued_messages 0",
            "log_type error",
        ]
        if not self._owner_can_write():
            settings.append("user root")
        path = self.folder / "mosquitto.conf"
        path.write_text("\n".join(settings) + "\n", encoding="utf-8")
        with (self.folder / "mosquitto.log").open("ab") as log:
            self._process = subprocess.Popen([command, "-c", str(path)], stdout=log, stderr=log)
        until = time.monotonic() + START_S
        while time.monotonic() < until and self._process.poll() is None:
            with socket.socket() as probe:
                probe.settimeout(0.2)
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.05)
        words = (self.folder / "mosquitto.log").read_text(errors="replace").strip().splitlines()
        raise HighwallError(f"mosquitto did not start: {words[-1] if words else 'it said nothing'}")

    @staticmethod
    def _owner_can_write() -> bool:
        """mosquitto gives up root's rights for those of a user who could not write into our folder."""
        return os.geteuid() != 0

    def kill(self) -> None:
        """End it as a power cut would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def forget(self) -> None:
        """While it is down: lose its sessions and its queues."""
        (self.folder / "mosquitto.db").unlink(missing_ok=True)

    def stop(self) -> None:
        """End it in good order."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(5)
            except subprocess.TimeoutExpired:
                self.kill()


def program() -> str:
    """Where mosquitto is. Raises HighwallError where it is not installed."""
    found = shutil.which("mosquitto", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    if found is None:
        raise HighwallError("mosquitto is not installed; on Debian: apt install mosquitto")
    return found


def free_port() -> int:
    """A TCP port that nobody listened on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
