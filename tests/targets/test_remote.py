"""A board over ssh, against a real sshd: the whole path, every way in which it breaks, and nothing left behind."""

import os
import select
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import zipfile
from contextlib import ExitStack
from dataclasses import replace
from importlib.metadata import distribution
from pathlib import Path

import numpy as np
import pytest
import sshd as helper
from sshd import PI4, Sshd, StandIn

from targets.board import load_board
from targets.remote import link, ssh
from targets.remote.bench import bench_over_ssh
from targets.remote.probe import Found, parse, refusal
from targets.runtime import artifact, bench
from targets.runtime.errors import HighwallError
from targets.runtime.measurement import lines
from targets.runtime.signing import SigningKey

FEW = bench.FEWEST_RUNS
LONG = 600.0  # seconds of load that no test waits for
PI = load_board("rpi4b")
VERSION = f"{sys.version_info[0]}.{sys.version_info[1]}"


@pytest.fixture
def pi(tmp_path, monkeypatch, ci_or_skip):
    """A stand-in Pi 4B behind a real sshd, `pi` by the user's own config; at the end nothing may lie there."""
    if helper.missing():
        ci_or_skip("there is no sshd or ssh; apt install openssh-server openssh-client")
    server = Sshd(tmp_path, StandIn(tmp_path / "board"))
    monkeypatch.setenv("HIGHWALL_SSH_CONFIG", str(server.config))
    server.start()
    yield server
    left = server.left()
    server.stop()
    assert left == []


@pytest.fixture
def file(tmp_path, classifier):
    return classifier.write(tmp_path / "tiny.highwall")


def measure(file, host="pi", **options):
    return bench_over_ssh(host, file, **{"board": PI, "runs": FEW, **options})


def refused(file, host="pi", **options) -> str:
    with pytest.raises(HighwallError) as caught:
        measure(file, host, **options)
    assert "\n" not in str(caught.value)
    assert host in str(caught.value)
    return str(caught.value)


class When:
    """A `say` that does something once, when it hears `word`."""

    def __init__(self, word, action):
        self.word, self.action, self.heard = word, action, []

    def __call__(self, line):
        self.heard.append(line)
        if self.word in line and self.action is not None:
            action, self.action = self.action, None
            action()


def kill(server, word):
    """Kill every process below the server whose command line begins with or holds `word`."""
    found = [number for number, command in server.family().items() if word in command]
    assert found
    for number in found:
        os.kill(number, signal.SIGKILL)


# --- the whole path ---------------------------------------------------------------------------------------


def test_an_artifact_is_measured_on_the_board(pi, file):
    said = []
    found = measure(file, sustained_s=0.1, say=said.append)
    assert found.reasons == ()
    assert (found.machine.model, found.machine.cpu_part, found.timed.runs) == (PI4, "0xd08", FEW)
    assert (found.after.clock_mhz, found.after.temperature_c, found.after.throttled_now) == (1800, 48.312, ())
    assert found.sustained.runs > 0
    assert found.cold.engine_ms > 1  # in a process that had done nothing
    assert said[0] == "connecting to pi"
    assert any(line.startswith("copying 0.") for line in said)
    assert any("golden vectors agree" in line for line in said)
    assert lines(found)[0] == f"tiny version 3, onnx, 1 thread, on {PI4}"


def test_a_throttled_board_gives_no_headline(pi, file):
    pi.board.answers("get_throttled", "throttled=0x0", "throttled=0x50005")
    found = measure(file)
    assert found.as_dict()["headline"] is None
    assert "no headline: the board was throttled meanwhile: under-voltage" in lines(found)


def test_what_the_users_own_config_does_otherwise_neither_harms_nor_hangs(pi, file):
    with tempfile.TemporaryDirectory() as short:  # a socket's path may not be long
        habits = {
            "ControlMaster": "auto",
            "ControlPath": f"{short}/%C",
            "ControlPersist": "60",
            "RemoteCommand": "/bin/false",
            "RequestTTY": "force",
            "LogLevel": "DEBUG",
            "LocalForward": f"{pi.port} localhost:1",
            "ExitOnForwardFailure": "yes",
            "ServerAliveInterval": "0",
        }
        with pi.config.open("a") as config:
            config.writelines(f"{key} {value}\n" for key, value in habits.items())
        assert measure(file).timed.runs == FEW
        assert list(Path(short).iterdir()) == []


def test_any_machine_is_measured_where_that_is_wanted(pi, file):
    (pi.board.bin / "uname").unlink()
    (pi.board.root / "proc/device-tree/model").unlink()
    assert measure(file, any_board=True).machine.device_tree == ""


def test_modules_that_lie_about_in_the_users_home_there_are_not_taken_for_pythons_own(pi, file, tmp_path):
    home = tmp_path / "home"
    (home / "onnxruntime").mkdir(parents=True)
    for name in ("importlib", "json", "struct", "tarfile", "numpy"):
        (home / f"{name}.py").write_text("raise SystemExit('not me')\n")
    pi.session.append(f"cd {shlex.quote(str(home))}")
    pi.stop()
    pi.start()
    assert measure(file).timed.runs == FEW


# --- no way in --------------------------------------------------------------------------------------------


def test_an_unknown_host_key_is_not_accepted(pi, file):
    (pi.folder / "known").write_text("")
    assert "host key is unknown here; connect once by hand (`ssh pi`)" in refused(file)
    assert (pi.folder / "known").read_text() == ""


def test_a_changed_host_key_is_named_as_such(pi, file):
    pi.key("stranger")
    pi.know("stranger")
    said = refused(file)
    assert "host key is not the one known" in said
    assert "forget the old key: ssh-keygen " in said
    assert "-R" in said


def test_a_key_that_is_not_taken_is_named_with_the_command_that_puts_it_there(pi, file):
    pi.key("stranger")
    pi.user("stranger")
    assert f"takes none of your keys; put this one there: ssh-copy-id -i {pi.folder}/stranger.pub pi" in refused(file)
    pi.user("nothing")
    assert "ssh-keygen" in refused(file)


def test_a_board_without_sshd_is_told_from_one_that_does_not_answer(pi, file, monkeypatch):
    pi.stop()
    assert "nothing listens for ssh there" in refused(file)
    monkeypatch.setitem(ssh.OPTIONS, "ConnectTimeout", "1")
    with socket.create_server(("127.0.0.1", pi.port)):  # takes the call and says nothing
        assert "no answer; is it switched on" in refused(file)


def test_a_name_that_nobody_knows_is_said_to_be_one(pi, file):
    assert "no such name here" in refused(file, "pi@a..b")


@pytest.mark.parametrize(
    "host",
    [
        "-oProxyCommand=touch x",
        "-",
        "",
        "pi@-oProxyCommand=x",
        "a b",
        "pi;reboot",
        "$(reboot)",
        "pi\n",
        "pi@",
        "\x1b[2J",
    ],
)
def test_a_host_can_be_no_option_and_no_command(host, file):
    said = []
    with pytest.raises(HighwallError, match=r"is no \[USER@\]HOST"):
        measure(file, host, say=said.append)
    assert said == []


@pytest.mark.parametrize("host", ["pi", "pi@10.0.0.7", "pi@pit-3.mine.example", "fe80::1%eth0", "ssh://pi@[::1]:2222"])
def test_every_usual_name_of_a_host_is_taken(host):
    ssh.check_host(host)


def test_a_machine_without_ssh_says_what_to_install(file, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(HighwallError, match="apt install openssh-client"):
        measure(file)


def test_an_account_without_a_shell_is_told(pi, file):
    pi.session.insert(0, "exit 1")
    pi.stop()
    pi.start()
    assert "does a shell start there?" in refused(file)


# --- not this machine -------------------------------------------------------------------------------------


def test_another_board_is_refused_before_anything_is_copied(pi, file):
    said = []
    pi.board.file("proc/device-tree/model", "Raspberry Pi 5 Model B Rev 1.0\0")
    assert "this is a Raspberry Pi 5 Model B Rev 1.0, not a Raspberry Pi 4 Model B" in refused(file, say=said.append)
    pi.board.file("proc/device-tree/model", f"{PI4}\0")
    pi.board.file("proc/cpuinfo", "CPU part\t: 0xd0b\n")
    assert "its CPU part is 0xd0b" in refused(file, say=said.append)
    assert said == ["connecting to pi"] * 2


def test_another_architecture_is_refused(pi, file):
    pi.board.program("uname", '[ "$1" = -m ] && echo armv7l || echo Linux')
    assert "it is armv7l; the engines need a 64-bit ARM system" in refused(file)
    pi.board.program("uname", "echo Darwin")
    assert "it runs Darwin" in refused(file)


def test_a_board_without_python_or_with_an_old_one_is_refused(pi, file, tmp_path):
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("sh", "tr", "sed", "df", "tail"):
        (tools / name).symlink_to(f"/usr/bin/{name}" if Path(f"/usr/bin/{name}").exists() else f"/bin/{name}")
    pi.session.append(f"export PATH={shlex.quote(str(pi.board.bin))}:{shlex.quote(str(tools))}")
    pi.stop()
    pi.start()
    assert "it has no python3 that starts" in refused(file)
    pi.board.program("python3", "echo 3.9/64/2.31/numpy/onnxruntime")
    assert "its Python is 3.9; 3.11 or newer" in refused(file)


def test_a_32_bit_python_on_a_64_bit_kernel_is_refused():
    pi3 = Found("Linux", "aarch64", PI4, "0xd08", 10**6, "/tmp", "3.13", "32", "2.41", frozenset({"numpy"}))
    assert "32-bit Python" in refusal(pi3, PI, "onnx", None)
    assert refusal(replace(pi3, bits="64"), PI, "native", None) is None


def test_a_board_that_answers_nonsense_is_one_that_says_nothing():
    nonsense = {"free": "9" * 5000, "python": "3.x", "folder": "\x1b[2J"}
    found = parse(nonsense)
    assert (found.free_kib, found.python, found.folder) == (None, "", "?[2J")
    assert "no system that has uname" in refusal(found, PI, "onnx", None)


def test_an_artifact_made_for_the_workbench_has_no_board(pi, file):
    assert "made for the machine it was built on" in refused(file, board=load_board("host"))


def test_a_board_with_too_little_disk_is_refused_before_anything_is_copied(pi, file, tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "none", small], capture_output=True, check=False
    ).returncode
    try:
        if mounted:  # not root, or in a container
            pi.board.program("df", "printf 'Filesystem 1024-blocks Used Available Capacity\\nnone 64 0 64 0%% /\\n'")
        pi.session.append(f"export TMPDIR={shlex.quote(str(small))}")
        pi.stop()
        pi.start()
        said = []
        assert f"0.1 MiB are free in {small}" in refused(file, say=said.append)
        assert said == ["connecting to pi"]
        assert list(small.iterdir()) == []
    finally:
        if not mounted:
            subprocess.run(["umount", small], check=True)


def test_a_disk_that_fills_while_it_is_copied_leaves_nothing(pi, file):
    pi.session.append("ulimit -f 8")  # 4 KiB a file
    pi.stop()
    pi.start()
    assert "could not be set up there: File too large" in refused(file)


def test_a_board_without_its_temporary_folder_says_so(pi, file):
    pi.session.append("export TMPDIR=/nowhere")
    pi.stop()
    pi.start()
    assert "/nowhere/highwall-bench-XXXXXXXX" in refused(file)


# --- cut short --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("moment", ["copying", "timing"])
def test_a_link_lost_on_the_way_is_told_and_the_board_cleans_up_by_itself(pi, file, moment):
    with ExitStack() as stack:

        def cut():
            stack.enter_context(pi.watched())
            kill(pi, "sshd:")

        when = When(moment, cut)
        assert "the link to pi was lost" in refused(file, sustained_s=LONG, say=when)
    assert pi.left() == []
    assert "did not say that it has cleaned up" in when.heard[-1]


def test_a_board_that_hears_nothing_more_cleans_up_though_the_link_seems_alive(pi, file, monkeypatch):
    monkeypatch.setattr(link, "SILENCE_S", 2)
    monkeypatch.setattr(link, "BEAT_S", 0.2)

    def stall():
        (client,) = own_ssh()
        with pi.watched() as family:
            assert any("targets.runtime.bench" in command for command in family.values())
            os.kill(client, signal.SIGSTOP)
            wait_for(supervisor(family))
            assert pi.left() == []
            os.kill(client, signal.SIGCONT)

    assert "the link stands still for 2 s" in refused(file, sustained_s=LONG, say=When("timing", stall))


def own_ssh() -> list[int]:
    """The ssh clients this process has started."""
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    return [int(number) for number in children if Path(f"/proc/{number}/comm").read_text() == "ssh\n"]


def supervisor(family) -> int:
    (number,) = [number for number, command in family.items() if "def supervise(" in command]
    return number


def wait_for(number):
    handle = os.pidfd_open(number)
    try:
        assert select.select([handle], [], [], 30.0)[0]
    finally:
        os.close(handle)


def test_ctrl_c_stops_the_board_and_sees_it_clean_up(pi, file):
    script = (
        "import sys\nfrom pathlib import Path\nfrom targets.board import load_board\n"
        "from targets.remote.bench import bench_over_ssh\n"
        f"try:\n    bench_over_ssh('pi', Path(sys.argv[1]), board=load_board('rpi4b'), sustained_s={LONG},\n"
        "        say=lambda line: print(line, flush=True))\n"
        "except KeyboardInterrupt:\n    print('interrupted')\n"
    )
    command = [sys.executable, "-c", script, file]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        heard = []
        for line in process.stdout:
            heard.append(line)
            if "timing" in line:
                assert pi.left() != []
                os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    assert heard[-1] == "interrupted\n"
    assert not any("did not say" in line for line in heard)
    assert pi.left() == []  # at once: it was waited for


def test_a_runner_that_is_killed_is_told_and_cleaned_up_after(pi, file):
    said = refused(file, sustained_s=LONG, say=When("timing", lambda: kill(pi, " -m targets.runtime.bench --")))
    assert "killed by signal 9, perhaps for want of memory" in said


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_supervisor_that_is_stopped_or_killed_leaves_nothing(pi, file, how):
    with ExitStack() as stack:

        def stop():
            os.kill(supervisor(stack.enter_context(pi.watched())), how)

        assert "was stopped before it was done" in refused(file, sustained_s=LONG, say=When("timing", stop))


@pytest.mark.parametrize("answer", ['{"code": Infinity, "out": "", "last": ""}', "[]", "{", '{"code": 0}'])
def test_a_garbled_result_is_one_line(pi, file, answer):
    frames = rf"\nhighwall-bench: ready .\n\nhighwall-bench: result {answer}\n"
    probe = f"[ $1 = -c ] && exec echo {VERSION}/64/2.41/numpy/onnxruntime"
    pi.board.program("python3", f"{probe}; printf {shlex.quote(frames)}; exec cat >/dev/null")
    assert "the board's answer is garbled" in refused(file)


def test_an_artifact_that_answers_otherwise_there_is_not_timed(pi, tmp_path, classifier):
    other = replace(classifier.golden, expected=classifier.golden.expected + np.float32(0.25))
    artifact.write(tmp_path / "wrong.highwall", classifier.manifest, classifier.model, other, {})
    said = []
    assert "differ from its golden vectors by 0.25" in refused(tmp_path / "wrong.highwall", say=said.append)
    assert not any("error" in line for line in said)


def test_a_damaged_artifact_is_refused_before_anybody_is_called(file):
    file.write_bytes(file.read_bytes()[:-1])
    said = []
    with pytest.raises(HighwallError, match=str(file)):
        measure(file, say=said.append)
    assert said == []


# --- packages lent from a wheelhouse ----------------------------------------------------------------------


@pytest.fixture
def bare(tmp_path):
    """A Python without any package, this Highwall included."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "bare"], check=True)
    return str(tmp_path / "bare" / "bin" / "python3")


@pytest.fixture(scope="session")
def wheelhouse(tmp_path_factory):
    """Wheels of numpy and ONNX Runtime as they are installed here, under the names they have for a Pi."""
    folder = tmp_path_factory.mktemp("wheelhouse")
    tag = f"cp{VERSION.replace('.', '')}"
    for name in ("numpy", "onnxruntime"):
        known = distribution(name)
        path = folder / f"{name}-{known.version}-{tag}-{tag}-manylinux_2_17_aarch64.whl"
        with zipfile.ZipFile(path, "w") as packed:
            for entry in known.files:
                needless = {"tests", "tools", "transformers", "quantization", "datasets", "__pycache__", ".."}
                if not needless.intersection(entry.parts):
                    packed.write(entry.locate(), entry)
    (folder / f"numpy-0.1-{tag}-{tag}-manylinux_2_17_aarch64.whl").touch()  # older: may not be chosen
    (folder / f"numpy-99.0rc1-{tag}-{tag}-manylinux_2_17_aarch64.whl").touch()  # newer, but a candidate
    (folder / f"numpy-99.0-{tag}-{tag}-manylinux_2_17_x86_64.whl").touch()  # newer, of another machine
    (folder / f"numpy-99.0-{tag}-{tag}-manylinux_2_99_aarch64.whl").touch()  # newer, for a newer glibc
    return folder


def test_a_bare_board_is_lent_what_it_lacks_and_keeps_nothing(pi, classifier, tmp_path, bare, wheelhouse, monkeypatch):
    monkeypatch.setitem(ssh.OPTIONS, "Compression", "no")  # there is no cable to spare here
    # Signed, though the board has nothing to check a signature with: that was done here.
    path = tmp_path / "signed.highwall"
    artifact.write(path, *classifier.all, SigningKey("ann", bytes(range(32))))
    found = measure(path, python=bare, wheelhouse=wheelhouse)
    assert found.machine.packages["numpy"] == distribution("numpy").version
    assert any("lent from" in note for note in found.notes)
    site = Path(bare).parent.parent / "lib" / f"python{VERSION}" / "site-packages"
    assert list(site.iterdir()) == []


def test_missing_packages_are_named_with_the_line_that_fetches_them(pi, file, bare):
    said = refused(file, python=bare)
    assert f"its Python {VERSION} lacks numpy onnxruntime" in said
    assert "pip download" in said
    assert said.endswith(f"--python-version {VERSION} -d DIR numpy onnxruntime")


def test_a_wheelhouse_without_a_fitting_wheel_is_refused(pi, file, bare, tmp_path):
    (tmp_path / "numpy-2.0-cp310-cp310-manylinux_2_17_aarch64.whl").touch()
    with pytest.raises(HighwallError, match=rf"has no wheel of numpy for Python {VERSION} on aarch64 with glibc"):
        measure(file, python=bare, wheelhouse=tmp_path)
