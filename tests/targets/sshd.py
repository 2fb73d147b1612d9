"""A real sshd on loopback whose sessions see a stand-in Raspberry Pi: device tree, cpuinfo, firmware, uname."""

import os
import select
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SSHD = Path("/usr/sbin/sshd")
PRIVILEGE_SEPARATION = Path("/run/sshd")  # an empty folder that a root's sshd wants, and Debian's service makes
PI4 = "Raspberry Pi 4 Model B Rev 1.4"


class StandIn:
    """What a board shows of itself: a folder in place of /, and programs on the PATH."""

    def __init__(self, folder: Path, model: str = PI4, part: str = "0xd08"):
        self.root, self.bin = folder / "root", folder / "bin"
        self.bin.mkdir(parents=True)
        features = "fp asimd evtstrm crc32 cpuid"
        cpu = f"processor\t: 0\nFeatures\t: {features}\nCPU implementer\t: 0x41\nCPU part\t: {part}\n"
        self.file("proc/cpuinfo", f"{cpu}\n{cpu.replace(': 0', ': 1', 1)}")
        self.file("proc/device-tree/model", f"{model}\0")
        self.file("proc/loadavg", "0.25 0.1 0.05 1/100 1234\n")
        self.file("proc/stat", "cpu  100 0 100 100000 0 0 0 0 0 0\n")
        self.file("sys/class/thermal/thermal_zone0/temp", "48312\n")
        self.file("sys/devices/system/cpu/cpu0/cpufreq/scaling_governor", "performance\n")
        self.answers("get_throttled", "throttled=0x0")
        self.answers("measure_clock", "frequency(48)=1800404352")
        # Each call gets the next line of answers, and the last one again and again.
        self.program("vcgencmd", f'cd {folder}; echo >>"$1.calls"; sed -n "$(wc -l <"$1.calls")p;\\$p" "$1" | sed 1q')
        self.program("uname", '[ "$1" = -m ] && echo aarch64 || echo Linux')

    def file(self, name: str, text: str) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def answers(self, question: str, *lines: str) -> None:
        (self.bin.parent / question).write_text("".join(f"{line}\n" for line in lines))

    def program(self, name: str, script: str) -> None:
        path = self.bin / name
        path.unlink(missing_ok=True)
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)


class Sshd:
    """The server, its keys and the user's; `session` is a shell script's lines before every command."""

    def __init__(self, folder: Path, board: StandIn):
        self.folder, self.board = folder, board
        self.temp = folder / "temp"
        self.temp.mkdir()
        for name in ("host", "user"):
            self.key(name)
        (folder / "authorized").write_text((folder / "user.pub").read_text())
        self.config = folder / "ssh_config"
        self.session = [
            f"export PATH={shlex.quote(str(board.bin))}:{shlex.quote(str(Path(sys.executable).parent))}:/usr/bin:/bin",
            f"export HIGHWALL_SYSROOT={shlex.quote(str(board.root))} TMPDIR={shlex.quote(str(self.temp))}",
            "echo Welcome to the pit; printf 'no newline here'",  # as login scripts do
        ]
        self.port = 0
        self.process: subprocess.Popen[str] | None = None

    def key(self, name: str) -> None:
        path = self.folder / name
        path.unlink(missing_ok=True)
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", path], check=True)

    def start(self) -> None:
        """Returns once it listens."""
        if os.geteuid() == 0:  # else it does without
            PRIVILEGE_SEPARATION.mkdir(mode=0o755, exist_ok=True)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        session = self.folder / "session.sh"
        session.write_text("\n".join([*self.session, 'exec /bin/sh -c "$SSH_ORIGINAL_COMMAND"', ""]))
        self._write_config(
            "sshd_config",
            {
                "Port": self.port,
                "ListenAddress": "127.0.0.1",
                "HostKey": self.folder / "host",
                "AuthorizedKeysFile": self.folder / "authorized",
                "PidFile": "none",
                "StrictModes": "no",
                "UsePAM": "no",
                "PasswordAuthentication": "no",
                "KbdInteractiveAuthentication": "no",
                "PermitRootLogin": "prohibit-password",
                "ForceCommand": f"/bin/sh {session}",
            },
        )
        command = [SSHD, "-D", "-e", "-f", self.folder / "sshd_config"]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        said = []
        for line in self.process.stderr:
            said.append(line)
            if "Server listening" in line:
                break
        else:
            raise AssertionError("".join(said))
        self.know("host")
        self.user("user")

    def know(self, name: str) -> None:
        """What the user's known hosts say: this key."""
        kind, value, _ = (self.folder / f"{name}.pub").read_text().split()
        (self.folder / "known").write_text(f"[127.0.0.1]:{self.port} {kind} {value}\n")

    def user(self, key: str) -> None:
        """The user's own config: the board is `pi`."""
        self._write_config(
            "ssh_config",
            {
                "Host": "pi",
                "HostName": "127.0.0.1",
                "Port": self.port,
                "IdentityFile": self.folder / key,
                "IdentitiesOnly": "yes",
                "IdentityAgent": "none",
                "UserKnownHostsFile": self.folder / "known",
                "GlobalKnownHostsFile": "/dev/null",
            },
        )

    def _write_config(self, name: str, options: dict[str, object]) -> None:
        (self.folder / name).write_text("".join(f"{key} {value}\n" for key, value in options.items()))

    def left(self) -> list[Path]:
        """What lies in the board's folder for temporary files."""
        return sorted(self.temp.iterdir())

    def family(self) -> dict[int, str]:
        """Every process below the server: number -> its command line."""
        found, pending = {}, [self.process.pid]
        while pending:
            number = pending.pop()
            try:
                below = Path(f"/proc/{number}/task/{number}/children").read_text().split()
                found[number] = Path(f"/proc/{number}/cmdline").read_text().replace("\0", " ")
            except OSError:
                continue
            pending += map(int, below)
        del found[self.process.pid]
        return found

    @contextmanager
    def watched(self) -> Iterator[dict[int, str]]:
        """The processes below the server now; at the end, every one of them has ended, or the test fails."""
        family = self.family()
        handles = [os.pidfd_open(number) for number in family]
        try:
            yield family
            end = time.monotonic() + 30
            for handle in handles:
                assert select.select([handle], [], [], max(0.0, end - time.monotonic()))[0], "a process stays behind"
        finally:
            for handle in handles:
                os.close(handle)

    def stop(self) -> None:
        if self.process is None:
            return
        self.process.terminate()
        self.process.wait(timeout=10)
        self.process.stderr.close()


def missing() -> bool:
    """Whether this machine cannot run these tests."""
    return not SSHD.exists() or shutil.which("ssh") is None
