"""What runs on the board: it takes the runner and an artifact, runs it, and removes all of it again.

The whole source of this file is sent there (`python -P -c SOURCE FOLDER SILENCE_S`), so it imports nothing but the
standard library. Frames go to standard output: MARK, a word, and its text.
"""

import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Final

MARK: Final = "highwall-bench:"  # begins a frame; a login script may say something too
ARTIFACT: Final = "artifact.highwall"


def supervise(folder: str, silence_s: int) -> None:
    """From standard input comes a line of JSON, the runner's options; a tar; then a byte now and then, as long as
    somebody is there. Its end, or `silence_s` without a byte, ends all; `folder` is removed, and the process ends."""
    signals = {signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGALRM}
    for number in signals:
        signal.signal(number, _stop)
    try:
        _tell("ready", ".")
        options = _receive(folder, silence_s)
        _watch(folder, [sys.executable, "-P", "-m", "targets.runtime.bench", *options, ARTIFACT], silence_s)
    except SystemExit:
        pass  # somebody hung up
    except (OSError, ValueError, tarfile.TarError) as error:
        _tell("failed", f"the runner could not be set up there: {getattr(error, 'strerror', None) or error}")
    finally:
        for number in signals:
            signal.signal(number, signal.SIG_IGN)
        shutil.rmtree(folder, ignore_errors=True)
        os._exit(0)  # without the interpreter's last flush, which complains where nobody listens


def _receive(folder: str, silence_s: int) -> list[str]:
    """Unpack the tar into `folder`; returns the runner's options."""
    with open(0, "rb", closefd=False) as link:

        class Heard:
            def read(self, size: int) -> bytes:
                signal.alarm(silence_s)
                return link.read1(size)

        signal.alarm(silence_s)
        options: list[str] = json.loads(link.readline())
        with tarfile.open(fileobj=Heard(), mode="r|") as archive:  # type: ignore[call-overload]
            archive.extraction_filter = getattr(tarfile, "data_filter", None)  # not before Python 3.11.4
            archive.extractall(folder)
        return options


def _watch(folder: str, command: list[str], silence_s: int) -> None:
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
                    signal.alarm(silence_s)
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


if __name__ == "__main__":
    supervise(sys.argv[1], int(sys.argv[2]))
