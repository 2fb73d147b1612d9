"""Measuring an artifact on a board over ssh, with the user's own ssh: config, keys, agent and known hosts.

One connection does it all, and asks for no password. A shell on the board says what it is; where that will do, a
supervisor in Python makes one temporary folder, takes the runner and the artifact from its standard input, runs it,
and removes the folder whatever happens: at the end, on Ctrl-C here, when the runner dies, and when the link does,
because it stops once nothing was heard for SILENCE_S. HIGHWALL_SSH_CONFIG names another file than ~/.ssh/config.
"""

import inspect
import json
import os
import re
import select
import shlex
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import IO, Final, NoReturn, cast

import targets
from targets.board import Board
from targets.gate import wheel
from targets.runtime import bench, container, signing
from targets.runtime.artifact import read
from targets.runtime.bench import Bench, other_machine, plain
from targets.runtime.errors import HighwallError

CONFIG: Final = "HIGHWALL_SSH_CONFIG"
MARK: Final = "highwall-bench:"  # begins what is said to us; a login script may say something too
ARTIFACT: Final = "artifact.highwall"
BEAT_S, SILENCE_S = 5, 60
FAREWELL_S: Final = 20.0  # for the board to remove its folder once we hang up
RESERVE: Final = 4 << 20  # bytes of disk beside what is copied
MOST_LINE: Final = 16 << 20
LEAST_PYTHON: Final = (3, 11)
_HOST: Final = re.compile(r"(ssh://)?(\w[\w.+-]*@)?[\w\[:][\w.:%\[\]-]*", re.ASCII)
# Runtime -> what its engine imports there (both need numpy and no more): any of these modules -> distribution.
PACKAGES: Final[dict[str, dict[tuple[str, ...], str]]] = {
    "onnx": {("onnxruntime",): "onnxruntime"},
    "tflite": {("ai_edge_litert", "tflite_runtime"): "ai-edge-litert"},
}
_OPTIONS: Final = {
    "BatchMode": "yes",
    "ConnectTimeout": "15",
    "ServerAliveInterval": "10",
    "ServerAliveCountMax": "3",
    "ClearAllForwardings": "yes",
    "Compression": "yes",
    "ControlMaster": "no",  # one that this ssh left behind would hold our pipes open
    "LogLevel": "ERROR",
    "PermitLocalCommand": "no",
    "RemoteCommand": "none",
}
# What ssh says -> what to do; the first that occurs in it counts.
_FAULTS: Final = {
    "REMOTE HOST IDENTIFICATION HAS CHANGED": "its host key is not the one known for it: another machine answers, or "
    "its system was installed anew; find out which, then forget the old key: {forget}",
    "Host key verification failed": "its host key is unknown here; connect once by hand (`ssh {host}`) and compare it",
    "Could not resolve hostname": "no such name here; check it, or give an address",
    "Connection refused": "nothing listens for ssh there; is sshd enabled (raspi-config, Interface Options)?",
    "Connection timed out": "no answer; is it switched on, and within reach?",
    "Operation timed out": "no answer; is it switched on, and within reach?",
    "timed out": "no answer; is it switched on, and within reach?",
    "No route to host": "not within reach; are both on the same network?",
    "Network is unreachable": "not within reach; are both on the same network?",
}
Say = Callable[[str], None]


@dataclass(frozen=True)
class Found:
    """What a board says of itself; an empty word is what it does not know. `bits` are those of its Python."""

    system: str
    machine: str
    device_tree: str
    cpu_part: str
    free_kib: int | None
    folder: str
    python: str
    bits: str
    glibc: str
    modules: frozenset[str]


def bench_over_ssh(
    host: str,
    path: Path,
    *,
    board: Board,
    sustained_s: float = 0.0,
    runs: int = bench.RUNS,
    threads: int = 1,
    any_board: bool = False,
    wheelhouse: Path | None = None,
    python: str = "python3",
    say: Say = lambda line: None,
) -> Bench:
    """Measure the artifact at `path` on `host`, a name or USER@NAME as the user's ssh knows it.

    A machine that is not a `board` is refused unless `any_board`. `wheelhouse`: a folder of aarch64 wheels, from
    which numpy and the engine are lent to a board without them. `python`: the board's interpreter, if not the one on
    its PATH (that of a virtual environment, say). Raises HighwallError, one line, for whatever stands in the way.
    """
    check_host(host)
    order = bench.options(runs, sustained_s, threads)
    artifact = read(path)
    with _Link(host, python, say) as link, tempfile.TemporaryFile() as load:
        found = link.probe()
        if (reason := refusal(found, None if any_board else board, artifact.manifest.runtime, wheelhouse)) is not None:
            raise HighwallError(f"{host}: {reason}")
        missing = _missing(found, artifact.manifest.runtime)
        with tempfile.TemporaryDirectory() as folder:
            for wanted in [_choose(cast(Path, wheelhouse), name, found, board) for name in missing]:
                say(f"unpacking {wanted.name}")
                wheel.unpack(wanted, Path(folder))
            _pack(path, Path(folder), load)
        size = load.tell()
        needed = size + RESERVE
        if found.free_kib is not None and found.free_kib * 1024 < needed:
            raise HighwallError(
                f"{host}: {found.free_kib / 1024:.1f} MiB are free in {found.folder}, {needed / 2**20:.1f} are needed; "
                "free some, or set TMPDIR there to a folder on a larger disk"
            )
        code, out, last = link.run(load, size, order)
    measured = bench.result(code, out, last.replace(ARTIFACT, f"{host}: {path}"), host)
    if missing:
        lent = f"{' and '.join(missing)} were lent from {wheelhouse}; the engine's cold figure includes compiling them"
        measured = replace(measured, notes=(*measured.notes, lent))
    return measured


def check_host(host: str) -> None:
    """Raise HighwallError for a word that ssh could take for anything but a machine's name."""
    if not _HOST.fullmatch(host):
        raise HighwallError(f"{plain(host)!r} is no [USER@]HOST; give a name, an address or an alias of ~/.ssh/config")


def refusal(found: Found, board: Board | None, runtime: str, wheelhouse: Path | None) -> str | None:
    """Why an artifact for `board` (None: any) cannot be measured there, and what to do; None where it can."""
    return _wrong_machine(found, board) or _wrong_python(found, runtime, wheelhouse)


def _wrong_machine(found: Found, board: Board | None) -> str | None:
    if found.system != "Linux":
        return f"it runs {plain(found.system) or 'no system that has uname'}; the engines need Linux"
    if board is None:
        return None
    if board.name == "host":
        return "the artifact was made for the machine it was built on; build it for that board, or add --any-board"
    if found.machine != "aarch64" or found.bits == "32":
        what = plain(found.machine) if found.machine != "aarch64" else "aarch64 with a 32-bit Python"
        return f"it is {what}; the engines need a 64-bit ARM system (of Raspberry Pi OS the 64-bit image)"
    reason = other_machine(found.device_tree, found.cpu_part, board.device_tree, board.cpu_part)
    return reason and f"{reason}; build the artifact for it, or add --any-board"


def _wrong_python(found: Found, runtime: str, wheelhouse: Path | None) -> str | None:
    if not found.python:
        return "it has no python3 that starts; sudo apt install python3 there, or name one with --python"
    if wheel.version(found.python) < LEAST_PYTHON:
        return f"its Python is {found.python}; 3.11 or newer is needed, as in Raspberry Pi OS bookworm"
    missing = " ".join(_missing(found, runtime))
    if not missing or wheelhouse is not None:
        return None
    return (
        f"its Python {found.python} lacks {missing}; name one that has them (--python), or lend them from a folder of "
        "wheels (--wheels DIR): pip download --no-deps --only-binary :all: --platform manylinux_2_28_aarch64 "
        f"--platform manylinux_2_27_aarch64 --python-version {found.python} -d DIR {missing}"
    )


def _missing(found: Found, runtime: str) -> list[str]:
    """The distributions an engine needs and the board has not."""
    wanted: dict[tuple[str, ...], str] = {("numpy",): "numpy", **PACKAGES.get(runtime, {})}
    return [name for modules, name in wanted.items() if not found.modules.intersection(modules)]


def _choose(wheelhouse: Path, name: str, found: Found, board: Board) -> Path:
    """The newest wheel of `name` that the board's own pip would take."""
    there = replace(board, python=found.python, glibc=found.glibc or board.glibc)
    fitting = []
    for path in sorted(wheelhouse.glob("*.whl")):
        if re.sub(r"[-_.]+", "-", path.name.partition("-")[0]).lower() == name and not wheel.misfits(path.name, there):
            fitting.append((wheel.version(path.name.split("-")[1]), path))
    if not fitting:
        raise HighwallError(
            f"{wheelhouse} has no wheel of {name} for Python {plain(found.python)} on aarch64 with glibc {there.glibc}"
        )
    return max(fitting)[1]


def _pack(path: Path, site: Path, load: IO[bytes]) -> None:
    """A tar of the runner, of packages for it, and of the artifact."""
    room = Path(targets.__file__).parent
    with tarfile.open(fileobj=load, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for source in [room / "__init__.py", *sorted((room / "runtime").glob("*.py"))]:
            archive.add(source, f"code/targets/{source.relative_to(room)}")
        archive.add(site, "site")
        # Without its signature, which `read` has checked here: a board would need one package more to do so.
        members = container.unpack(path.read_bytes(), str(path))
        members.pop(signing.MEMBER, None)
        data = container.pack(members)
        entry = tarfile.TarInfo(ARTIFACT)
        entry.size = len(data)
        with tempfile.TemporaryFile() as handle:
            handle.write(data)
            handle.seek(0)
            archive.addfile(entry, handle)


class _Link:
    """One ssh connection: a shell that says what the board is and then gives its place to the supervisor."""

    def __init__(self, host: str, python: str, say: Say) -> None:
        self._host, self._python, self._say = host, python, say
        self._met = self._made = self._gone = False
        self._errors: deque[str] = deque(maxlen=100)
        self._hung_up = threading.Event()

    def __enter__(self) -> "_Link":
        # A session of its own: Ctrl-C at the terminal is for us, and we then hang up in good order.
        command = [*_ssh(), "-T", "-x", "-a", "--", self._host, "exec /bin/sh -s"]
        pipe = subprocess.PIPE
        try:
            self._ssh = subprocess.Popen(
                command, bufsize=0, stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True
            )
        except FileNotFoundError as error:
            raise HighwallError("there is no ssh on this machine; sudo apt install openssh-client") from error
        self._out = os.fdopen(os.dup(cast(IO[bytes], self._ssh.stdout).fileno()), "rb")
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Hang up, and see that the board has cleaned up; that may take FAREWELL_S when all is not well."""
        self._hung_up.set()
        timer = threading.Timer(FAREWELL_S, self._ssh.kill)
        timer.start()
        try:
            cast(IO[bytes], self._ssh.stdin).close()
            for word, text in self._frames():
                self._note(word, text)
            self._ssh.wait()
        finally:
            timer.cancel()
            self._ssh.kill()  # where a second Ctrl-C cut the farewell short
            self._ssh.wait()
            self._listener.join(1.0)
            for stream in (self._out, self._ssh.stdout, self._ssh.stderr):
                cast(IO[bytes], stream).close()
        if self._made and not self._gone:
            self._say(f"{self._host} did not say that it has cleaned up; it does so within {SILENCE_S} s by itself")

    def probe(self) -> Found:
        """What the board says of itself; nothing is written there."""
        self._say(f"connecting to {self._host}")
        modules = sorted({"numpy", *(name for wanted in PACKAGES.values() for names in wanted for name in names)})
        asked = _PYTHON_PROBE.replace("MODULES", repr(modules))
        command = f"{shlex.quote(self._python)} -c {shlex.quote(asked)}"
        self._send(_PROBE.replace("MARK", MARK).replace("PYTHON", command).encode())
        answers: dict[str, str] = {}
        for word, text in self._frames():
            self._met = True
            if word == "end":
                return _found(answers)
            answers[word] = text.strip()
        self._fail()

    def run(self, load: IO[bytes], size: int, order: list[str]) -> tuple[int, str, str]:
        """Have `size` bytes of tar unpacked and the runner run: its exit code, its output, its last line."""
        parts = [
            _IMPORTS,
            f"{MARK=}",
            f"{ARTIFACT=}",
            f"{SILENCE_S=}",
            *(inspect.getsource(part) for part in _SUPERVISOR),
            "_supervise()\n",
        ]
        source = "\n\n".join(parts)
        command = f'{shlex.quote(self._python)} -c {shlex.quote(source)} "$folder"'
        self._send(_KEEPER.replace("SUPERVISOR", command).encode())
        self._await("ready")
        self._say(f"copying {size / 2**20:.1f} MiB to {self._host}")
        load.seek(0)
        self._send(json.dumps(order).encode() + b"\n")
        while (block := load.read(1 << 16)) and self._send(block):
            pass
        beat = threading.Thread(target=self._beat, daemon=True)
        beat.start()
        try:
            result = json.loads(self._await("result"))
            return int(result["code"]), str(result["out"]), str(result["last"])
        except (ValueError, KeyError, TypeError) as error:
            raise HighwallError(f"{self._host}: the board's answer is garbled: {error}") from error
        finally:
            self._hung_up.set()
            beat.join()

    def _await(self, wanted: str) -> str:
        """The text of the next frame `wanted`; what comes before it is told to the user."""
        for word, text in self._frames():
            self._note(word, text)
            if word == wanted:
                return text
            if word == "failed":
                raise HighwallError(f"{self._host}: {plain(text)}")
        self._fail()

    def _note(self, word: str, text: str) -> None:
        self._made = self._made or word == "ready"
        self._gone = self._gone or word == "gone"
        if word in ("say", "left") and not text.startswith(bench.FAULT):
            self._say(plain(text))

    def _frames(self) -> Iterator[tuple[str, str]]:
        """What the board says, as (word, text), until it hangs up."""
        while line := self._out.readline(MOST_LINE):
            _, mark, rest = line.decode("utf-8", "replace").rstrip("\r\n").partition(f"{MARK} ")
            if mark:
                word, _, text = rest.partition(" ")
                yield word, text

    def _send(self, data: bytes) -> bool:
        """Whether the link took all of it; where not, the frames come to their end and say why."""
        try:
            while data:
                data = data[os.write(cast(IO[bytes], self._ssh.stdin).fileno(), data) :]
        except BrokenPipeError:
            return False
        return True

    def _beat(self) -> None:
        """Let the board hear us until we hang up."""
        while not self._hung_up.wait(BEAT_S) and self._send(b"."):
            pass

    def _listen(self) -> None:
        for line in cast(IO[bytes], self._ssh.stderr):
            self._errors.append(line.decode("utf-8", "replace").strip())

    def _fail(self) -> NoReturn:
        """Raise what ssh's end means."""
        code = self._ssh.wait()
        self._listener.join(2.0)
        said = [line for line in self._errors if line]
        if self._gone:
            raise HighwallError(
                f"{self._host}: the measurement was stopped before it was done, as it is where the link stands still "
                f"for {SILENCE_S} s; nothing is left there"
            )
        if self._met:
            why = f" ({plain(said[-1])})" if said else ""
            raise HighwallError(
                f"the link to {self._host} was lost{why}; the board stops and removes its folder by itself"
            )
        raise HighwallError(f"{self._host}: {_meaning(self._host, ' '.join(said), code)}")


def _ssh() -> list[str]:
    config = os.environ.get(CONFIG)
    return [
        "ssh",
        *(["-F", config] if config else []),
        *(part for key, value in _OPTIONS.items() for part in ("-o", f"{key}={value}")),
    ]


def _meaning(host: str, said: str, code: int) -> str:
    """What ssh complained about, and what to do."""
    for words, mend in _FAULTS.items():
        if words in said:
            forget = re.search(r'ssh-keygen -f "[^"]*" -R "[^"]*"', said)  # Debian's ssh knows where it stands
            return mend.format(host=host, forget=forget[0] if forget else f"ssh-keygen -R {host.rpartition('@')[2]}")
    if "Permission denied" in said or "Too many authentication failures" in said:
        return f"it takes none of your keys; {_key_mend(host)}"
    return f"ssh ended with code {code}: {plain(said) or 'it said nothing; does a shell start there?'}"


def _key_mend(host: str) -> str:
    """How to have a key taken: with one that ssh would offer, or by making one."""
    done = subprocess.run([*_ssh(), "-G", "--", host], capture_output=True, text=True, errors="replace", check=False)
    named = (line.partition(" ")[2] for line in done.stdout.splitlines() if line.startswith("identityfile "))
    for key in named:
        public = Path(f"{key}.pub").expanduser()
        if public.exists():
            return f"put this one there: ssh-copy-id -i {shlex.quote(str(public))} {host}"
    return f"make one (ssh-keygen), put it there (ssh-copy-id {host}); one with a passphrase belongs in ssh-agent"


def _found(answers: dict[str, str]) -> Found:
    python, bits, glibc, *modules = [*answers.get("python", "").split("/"), "", "", ""][:40]
    free = answers.get("free", "")
    return Found(
        system=answers.get("system", ""),
        machine=answers.get("machine", ""),
        device_tree=answers.get("model", ""),
        cpu_part=answers.get("part", ""),
        free_kib=int(free) if free.isascii() and free.isdigit() else None,
        folder=plain(answers.get("folder", "")),
        python=python if re.fullmatch(r"\d{1,3}\.\d{1,3}", python, re.ASCII) else "",
        bits=bits,
        glibc=glibc if re.fullmatch(r"\d{1,3}\.\d{1,3}", glibc, re.ASCII) else "",
        modules=frozenset(modules),
    )


# POSIX sh, and a Python of any age; HIGHWALL_SYSROOT as in targets.runtime.bench.
_PROBE: Final = r"""
tell() { printf '\nMARK %s %s\n' "$1" "$2"; }
proc=${HIGHWALL_SYSROOT:-}/proc
tell system "$(uname -s)"
tell machine "$(uname -m)"
tell model "$({ tr -d '\000' <"$proc/device-tree/model"; } 2>/dev/null)"
tell part "$(sed -n 's/^CPU part[[:space:]]*:[[:space:]]*//p' "$proc/cpuinfo" 2>/dev/null | sed 1q)"
tell folder "${TMPDIR:-/tmp}"
tell free "$(df -Pk "${TMPDIR:-/tmp}" 2>/dev/null | tail -n 1 | { read -r _ _ _ free _; echo "$free"; })"
tell python "$(PYTHON 2>/dev/null </dev/null)"
tell end .
"""
_PYTHON_PROBE: Final = (
    "import importlib.util, platform, struct, sys\n"
    "has = [name for name in MODULES if importlib.util.find_spec(name)]\n"
    "print('/'.join(['%d.%d' % sys.version_info[:2], str(8 * struct.calcsize('P')), platform.libc_ver()[1]] + has))"
)


# --- what runs on the board -------------------------------------------------------------------------------
# Sent as source to the shell that answered the probe, after these imports and the constants it uses; nothing else of
# this file is there.

# One compound command, read as a whole, because what follows it on standard input is the supervisor's. The shell
# makes the folder and, when all is over, removes what is left of it, even if the supervisor was killed outright.
_KEEPER: Final = r"""
{
trap '' HUP INT TERM
folder=$(mktemp -d "${TMPDIR:-/tmp}/highwall-bench-XXXXXXXX" 2>&1) || { tell failed "$folder"; exit; }
SUPERVISOR
[ -f "$folder/runner" ] && kill -9 "-$(cat "$folder/runner")"
rm -rf "$folder"
[ -e "$folder" ] && tell left "$folder could not be removed there" || tell gone .
exit
}
"""
_IMPORTS: Final = (
    "import json, os, select, shutil, signal, subprocess, sys, tarfile, tempfile\nfrom pathlib import Path"
)


def _supervise() -> None:
    """From standard input comes a line of JSON, the runner's options; a tar; then a byte now and then, as long as
    somebody is there. Its end, or SILENCE_S without a byte, ends all."""
    folder = sys.argv[1]
    signals = {signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGALRM}
    for number in signals:
        signal.signal(number, _stop)
    try:
        _tell("ready", ".")
        options = _receive(folder)
        _watch(folder, [sys.executable, "-P", "-m", "targets.runtime.bench", *options, ARTIFACT])
    except SystemExit:
        pass  # somebody hung up
    except (OSError, ValueError, tarfile.TarError) as error:
        _tell("failed", f"the runner could not be set up there: {getattr(error, 'strerror', None) or error}")
    finally:
        for number in signals:
            signal.signal(number, signal.SIG_IGN)
        shutil.rmtree(folder, ignore_errors=True)
        os._exit(0)  # without the interpreter's last flush, which complains where nobody listens


def _receive(folder: str) -> list[str]:
    """Unpack the tar into `folder`; returns the runner's options."""
    with open(0, "rb", closefd=False) as link:

        class Heard:
            def read(self, size: int) -> bytes:
                signal.alarm(SILENCE_S)
                return link.read1(size)

        signal.alarm(SILENCE_S)
        options: list[str] = json.loads(link.readline())
        with tarfile.open(fileobj=Heard(), mode="r|") as archive:  # type: ignore[call-overload]
            archive.extraction_filter = getattr(tarfile, "data_filter", None)  # not before Python 3.11.4
            archive.extractall(folder)
        return options


def _watch(folder: str, command: list[str]) -> None:
    """Run the runner and pass on what it says, until it ends or nobody is there to hear it."""
    places = [f"{folder}/code", f"{folder}/site", *filter(None, [os.environ.get("PYTHONPATH")])]
    own = {"PYTHONPATH": ":".join(places), "PYTHONDONTWRITEBYTECODE": "1", "TMPDIR": folder, "XDG_CACHE_HOME": folder}
    with (
        Path(folder, "out").open("w+b") as out,
        subprocess.Popen(
            command,
            cwd=folder,
            env={**os.environ, **own},
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.PIPE,
            start_new_session=True,
        ) as runner,
    ):
        try:
            Path(folder, "runner").write_text(str(runner.pid))  # its process group, for the shell
            last, pending, said = "", b"", runner.stderr.fileno()  # type: ignore[union-attr]
            block = b"."
            while block:
                ready, _, _ = select.select([0, said], [], [])
                if 0 in ready:
                    signal.alarm(SILENCE_S)
                    if not os.read(0, 4096):
                        raise SystemExit
                if said in ready:
                    block = os.read(said, 65536)
                    *lines, pending = (pending + (block or b"\n")).split(b"\n")
                    for line in filter(None, lines):
                        last = line.decode("utf-8", "replace")[:2000]
                        _tell("say", last)
            code = runner.wait()
        finally:
            if runner.poll() is None:
                os.killpg(runner.pid, signal.SIGKILL)
        out.seek(0)
        answer = {"code": code, "out": out.read().decode("utf-8", "replace"), "last": last}
        _tell("result", json.dumps(answer))


def _tell(word: str, text: str) -> None:
    try:
        with open(1, "wb", closefd=False) as out:
            out.write(f"\n{MARK} {word} {text}\n".encode("utf-8", "replace"))
    except OSError:
        pass  # nobody listens any more; standard input will say so too


def _stop(*_: object) -> None:
    raise SystemExit


_SUPERVISOR: Final = (_supervise, _receive, _watch, _tell, _stop)
