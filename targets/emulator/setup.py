"""Setting the emulator up: an arm64 system, aarch64 wheels, one overlay a board, the counter plugin.

Every part is made beside its place and renamed, so a set-up cut short goes on where it stopped, and one that
is complete does nothing. Nothing needs root but the Debian packages themselves, which are named, not installed.
"""

import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib.metadata import distributions
from pathlib import Path
from typing import Final

from targets.board import Board
from targets.emulator.layout import COUNTER_SOURCES, PACKAGES, QEMU, SYSTEM, Layout
from targets.runtime.errors import HighwallError

KEYRING: Final = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
# What must be on this machine -> the Debian package that brings it.
PROGRAMS: Final = {
    QEMU: "qemu-user",
    "apt-get": "apt",
    "dpkg-deb": "dpkg",
    "tar": "tar",
    "setarch": "util-linux",
    "taskset": "util-linux",
}
SOURCES: Final = Path("/etc/apt")
Say = Callable[[str], None]


def set_up(boards: Sequence[Board], say: Say, mirror: str | None = None) -> None:
    """Make everything the emulated `boards` need. Raises HighwallError naming what is missing and its mend."""
    layouts = [Layout.of(board) for board in boards]
    check_machine(compiler=not all(layout.counter.exists() for layout in layouts))
    for layout in layouts:
        layout.home.mkdir(parents=True, exist_ok=True)
        root, site = partial(_unpack, layout, mirror), partial(_wheels, layout)
        _once(layout.root, say, f"arm64 system of Debian {layout.suite}", root)
        _once(layout.site, say, f"aarch64 wheels for Python {layout.board.python}", site)
        _once(layout.overlay, say, f"/proc and /sys of a {layout.board.title}", partial(_overlay, layout))
        _once(layout.counter, say, "the instruction counter", _compile)


def check_machine(compiler: bool = True) -> None:
    """Raise HighwallError where the emulator cannot work, with the line that installs what it lacks."""
    if not sys.platform.startswith("linux"):
        raise HighwallError(
            f"the emulator needs Linux (qemu-user), this is {sys.platform}; use a Debian machine or --ssh"
        )
    if shutil.which("apt-get") is None:
        raise HighwallError(
            "the emulator takes its arm64 system from Debian with apt-get, which is not here; use Debian 12"
        )
    lacking = list(dict.fromkeys(package for program, package in PROGRAMS.items() if shutil.which(program) is None))
    if not KEYRING.exists():
        lacking.append("debian-archive-keyring")
    if compiler and shutil.which("cc") is None:
        lacking += ["gcc", "libc6-dev"]
    if lacking:
        raise HighwallError(f"the emulator lacks Debian packages; sudo apt-get install {' '.join(lacking)}")
    offers = subprocess.run([QEMU, "--help"], capture_output=True, text=True, check=False).stdout
    if "\n-plugin " not in offers:
        raise HighwallError(
            f"this {QEMU} has no -plugin option, so it cannot count; the emulator is made for qemu-user 7.2 of "
            "Debian 12 (its dynamic build, not qemu-user-static)"
        )


def _once(path: Path, say: Say, what: str, make: Callable[[Path], None]) -> None:
    """Have `make` fill a new folder (or file) that becomes `path`, unless it is there."""
    if path.exists():
        return
    say(what)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.", ignore_cleanup_errors=True) as scratch:
        made = Path(scratch) / "made"
        make(made)
        try:
            made.rename(path)
        except OSError:
            if not path.exists():  # or another set-up was quicker
                raise


def _unpack(layout: Layout, mirror: str | None, into: Path) -> None:
    """Download the guest's packages by an apt of its own, and unpack them: no script of theirs is run."""
    apt = _private_apt(layout, mirror or _mirror())
    _run([*apt, "update"], "apt-get update for arm64 failed; is the Debian mirror within reach?")
    order = [*apt, "install", "--yes", "--no-install-recommends", "--download-only", *SYSTEM]
    _run(order, "the arm64 packages could not be downloaded; run the set-up again, it goes on where it stopped")
    into.mkdir()
    for name in ("bin", "sbin", "lib"):  # before any package, or the first would make a folder of the link
        (into / "usr" / name).mkdir(parents=True)
        (into / name).symlink_to(f"usr/{name}")
    for deb in sorted((layout.packages / "cache" / "archives").glob("*.deb")):
        with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(deb)], stdout=subprocess.PIPE) as packed:
            _run(
                ["tar", "--extract", "--keep-directory-symlink", "--no-same-owner", "--directory", str(into)],
                f"{deb.name} cannot be unpacked; delete {layout.packages} and run the set-up again",
                stdin=packed.stdout,
            )
        if packed.returncode:
            raise HighwallError(f"{deb} is damaged; delete it and run the set-up again")
    if not (into / "usr" / "bin" / f"python{layout.board.python}").exists():
        raise HighwallError(f"Debian {layout.suite} brought no Python {layout.board.python}; see {layout.packages}")
    shutil.rmtree(layout.packages)


def _private_apt(layout: Layout, mirror: str) -> list[str]:
    """An apt-get whose state, cache and sources are under our own folder, for arm64 only."""
    base = layout.packages
    for folder in ("state/lists/partial", "cache/archives/partial", "etc/apt.conf.d", "etc/preferences.d", "log"):
        (base / folder).mkdir(parents=True, exist_ok=True)
    (base / "status").touch()
    (base / "etc" / "sources.list").write_text(f"deb [signed-by={KEYRING}] {mirror} {layout.suite} main\n")
    settings = {
        "Dir::State": base / "state",
        "Dir::State::status": base / "status",
        "Dir::Cache": base / "cache",
        "Dir::Etc": base / "etc",
        "Dir::Log": base / "log",
        "APT::Architecture": "arm64",
        "APT::Architectures": "arm64",
        "APT::Sandbox::User": "",
        "Acquire::Languages": "none",
        "Debug::NoLocking": "true",  # a user may not lock the system's dpkg, which is not touched
    }
    return ["apt-get", "-q", *(part for key, value in settings.items() for part in ("-o", f"{key}={value}"))]


def _mirror() -> str:
    """The Debian mirror this machine's own apt uses."""
    files = [SOURCES / "sources.list", *sorted((SOURCES / "sources.list.d").glob("*"))]
    found = [uri for path in files if path.suffix in (".list", ".sources") for uri in _uris(_text(path))]
    for uri in found:
        if re.search(r"/debian/?$", uri):
            return uri
    raise HighwallError("apt names no Debian mirror on this machine; give one: `highwall emulator setup --mirror URL`")


def _uris(text: str) -> Iterator[str]:
    """Addresses in one apt source file, of either format."""
    for line in text.splitlines():
        if match := re.match(r"\s*(?:deb\s+(?:\[[^\]]*\]\s*)?|URIs:\s*)(.+)", line):
            yield from (word for word in match[1].split() if "://" in word or word.startswith("file:"))


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _wheels(layout: Layout, into: Path) -> None:
    """Fetch wheels of the versions installed here, for the board's Python and no newer glibc than its own."""
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as constraints:
        for name, version in sorted({(dist.name, dist.version.split("+")[0]) for dist in distributions()}):
            constraints.write(f"{name}=={version}\n")
        constraints.flush()
        command = [
            *(sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-warn-conflicts"),
            *("--root-user-action", "ignore", "--target", str(into), "--only-binary", ":all:", "--no-compile"),
            *("--implementation", "cp", "--python-version", layout.board.python, "-c", constraints.name),
            *(part for tag in layout.board.wheel_tags for part in ("--platform", tag)),
            *PACKAGES,
        ]
        _run(command, "the aarch64 wheels could not be fetched; the first time it needs a package index")


def _overlay(layout: Layout, into: Path) -> None:
    into.mkdir()
    for entry in sorted(layout.root.iterdir()):
        (into / entry.name).symlink_to(entry)
    for name, text in board_files(layout.board).items():
        path = into / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def board_files(board: Board) -> dict[str, str]:
    """What a program asks of a board's /proc and /sys, by path.

    Without them qemu shows this machine's own: ONNX Runtime then crashes on an x86 cpuinfo, and a cpuinfo
    with more features than the CPU model has leads engines into instructions that are not there.
    """
    words = "fp asimd evtstrm crc32 cpuid"
    if board.features.lse:
        words += " atomics"
    if board.features.fp16:
        words += " fphp asimdhp"
    if board.features.dot_product:
        words += " asimdrdm lrcpc dcpop asimddp"
    blocks = [
        f"processor\t: {core}\nBogoMIPS\t: 108.00\nFeatures\t: {words}\nCPU implementer\t: 0x41\n"
        f"CPU architecture: 8\nCPU variant\t: 0x0\nCPU part\t: {board.cpu_part}\nCPU revision\t: 3\n"
        for core in range(board.cores)
    ]
    every = f"0-{board.cores - 1}\n"
    cpus = "sys/devices/system/cpu"
    files = {
        "proc/cpuinfo": "\n".join(blocks) + f"\nModel\t\t: {board.device_tree}\n",
        "proc/device-tree/model": f"{board.device_tree}\0",
        **{f"{cpus}/{name}": every for name in ("possible", "present", "online")},
    }
    for core in range(board.cores):
        one, topology = f"{core}\n", f"{cpus}/cpu{core}/topology"
        files[f"{cpus}/cpu{core}/cpufreq/cpuinfo_max_freq"] = f"{board.clock_mhz * 1000}\n"
        files |= {f"{topology}/{name}": "0\n" for name in ("physical_package_id", "cluster_id")}
        files |= {f"{topology}/{name}": one for name in ("core_id", "core_cpus_list", "thread_siblings_list")}
        files |= {
            f"{topology}/{name}": every for name in ("package_cpus_list", "core_siblings_list", "cluster_cpus_list")
        }
    return files


def _compile(into: Path) -> None:
    command = ["cc", "-O2", "-Wall", "-fPIC", "-shared", "-o", str(into), str(COUNTER_SOURCES[0])]
    _run(command, "the instruction counter does not compile; sudo apt-get install gcc libc6-dev")


def _run(command: Sequence[str], failure: str, stdin: object = None) -> None:
    """Run `command`; where it fails, its own last word follows `failure`."""
    done = subprocess.run(command, stdin=stdin, capture_output=True, text=True, errors="replace", check=False)  # type: ignore[call-overload]
    if done.returncode:
        said = [line for line in (done.stderr + done.stdout).splitlines() if re.match(r"(E|ERROR|error|tar):? ?", line)]
        last = said or (done.stderr or done.stdout).strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
        raise HighwallError(f"{failure}: {last[0].strip()}")
