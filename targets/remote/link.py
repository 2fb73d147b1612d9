"""One ssh connection: a shell that says what the board is and then gives its place to the supervisor."""

import inspect
import io
import json
import shlex
import subprocess
import threading
from collections import deque
from collections.abc import Iterator
from types import TracebackType
from typing import IO, Final, NoReturn, cast

from targets.remote import probe, ssh, supervisor
from targets.remote.probe import Found
from targets.remote.supervisor import MARK
from targets.runtime.bench import FAULT
from targets.runtime.errors import HighwallError, plain
from targets.runtime.timing import Say

BEAT_S, SILENCE_S = 5, 60
FAREWELL_S: Final = 20.0  # for the board to remove its folder once we hang up
MOST_LINE: Final = 16 << 20

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


class Link:
    """The connection, open within a `with`; whoever leaves that early makes the board stop and clean up."""

    def __init__(self, host: str, python: str, say: Say) -> None:
        self._host, self._python, self._say = host, python, say
        self._met = self._made = self._gone = False
        self._errors: deque[str] = deque(maxlen=100)
        self._hung_up = threading.Event()

    def __enter__(self) -> "Link":
        # A session of its own: Ctrl-C at the terminal is for us, and we then hang up in good order.
        command = [*ssh.command(), "-T", "-x", "-a", "--", self._host, "exec /bin/sh -s"]
        pipe = subprocess.PIPE
        try:
            process = subprocess.Popen(command, bufsize=0, stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True)
        except FileNotFoundError as error:
            raise HighwallError("there is no ssh on this machine; sudo apt install openssh-client") from error
        self._ssh = process
        self._in, out, self._err = (
            cast(io.FileIO, stream) for stream in (process.stdin, process.stdout, process.stderr)
        )
        self._out = io.BufferedReader(out)
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
            self._in.close()
            for word, text in self._frames():
                self._note(word, text)
            self._ssh.wait()
        finally:
            timer.cancel()
            self._ssh.kill()  # where a second Ctrl-C cut the farewell short
            self._ssh.wait()
            self._listener.join(1.0)
            self._out.close()
            self._err.close()
        if self._made and not self._gone:
            self._say(f"{self._host} did not say that it has cleaned up; it does so within {SILENCE_S} s by itself")

    def probe(self) -> Found:
        """What the board says of itself; nothing is written there."""
        self._say(f"connecting to {self._host}")
        self._send(probe.script(self._python))
        answers: dict[str, str] = {}
        for word, text in self._frames():
            self._met = True
            if word == "end":
                return probe.parse(answers)
            answers[word] = text.strip()
        self._fail()

    def run(self, load: IO[bytes], size: int, order: list[str]) -> tuple[int, str, str]:
        """Have `size` bytes of tar unpacked and the runner run: its exit code, its output, its last line."""
        command = shlex.join([self._python, "-P", "-c", inspect.getsource(supervisor)])
        self._send(_KEEPER.replace("SUPERVISOR", f'{command} "$folder" {SILENCE_S}').encode())
        self._await("ready")
        self._say(f"copying {size / 2**20:.1f} MiB to {self._host}")
        load.seek(0)
        self._send(json.dumps(order).encode() + b"\n")
        while (block := load.read(1 << 16)) and self._send(block):
            pass
        beat = threading.Thread(target=self._beat, daemon=True)
        try:
            beat.start()
            result = json.loads(self._await("result"))
            return int(result["code"]), str(result["out"]), str(result["last"])
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
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
        if word in ("say", "left") and not text.startswith(FAULT):
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
                data = data[self._in.write(data) :]
        except BrokenPipeError:
            return False
        return True

    def _beat(self) -> None:
        """Let the board hear us until we hang up."""
        while not self._hung_up.wait(BEAT_S) and self._send(b"."):
            pass

    def _listen(self) -> None:
        for line in self._err:
            if said := plain(line.decode("utf-8", "replace").strip()):
                self._errors.append(said)

    def _fail(self) -> NoReturn:
        """Raise what ssh's end means."""
        code = self._ssh.wait()
        self._listener.join(2.0)
        if self._gone:
            raise HighwallError(
                f"{self._host}: the measurement was stopped before it was done, as it is where the link stands still "
                f"for {SILENCE_S} s; nothing is left there"
            )
        if self._met:
            why = f" ({self._errors[-1]})" if self._errors else ""
            raise HighwallError(
                f"the link to {self._host} was lost{why}; the board stops and removes its folder by itself"
            )
        raise HighwallError(f"{self._host}: {ssh.meaning(self._host, ' '.join(self._errors), code)}")
