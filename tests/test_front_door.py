"""The front door: quick, quiet, and one clear line for whatever a user can mend."""

import errno
import os
import signal
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest

import highwall
from targets.runtime.errors import HighwallError

HEAVY = ("torch", "numpy", "onnx", "onnxruntime", "PIL", "cryptography", "rasterio", "sklearn")

# A room that stands in for a real one: what it does when called is whatever the test says.
FAKE_ROOM = """
def echo_arguments(parser):
    parser.add_argument("words", nargs="*")
    parser.add_argument("--count", type=int, default=1)

def echo(args):
    {body}
"""


def highwall_process(*arguments: str, root: Path, **options) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "highwall", *arguments]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, check=False, **options)


@pytest.fixture
def echo(monkeypatch):
    """Install a verb `echo` that runs the given function on its arguments."""

    def install(action):
        def echo_arguments(parser):
            parser.add_argument("words", nargs="*")
            parser.add_argument("--count", type=int, default=1)

        commands = SimpleNamespace(echo_arguments=echo_arguments, echo=action)
        monkeypatch.setitem(sys.modules, "fakeroom.commands", commands)
        monkeypatch.setitem(sys.modules, "fakeroom", SimpleNamespace(commands=commands))
        monkeypatch.setitem(highwall.VERBS, "echo", ("fakeroom", "say it again"))

    return install


def fail_with(error):
    def action(args):
        raise error

    return action


def one_line(capsys) -> str:
    """The single line on stderr; stdout must be empty."""
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.endswith("\n")
    assert captured.err.count("\n") == 1, captured.err
    return captured.err.strip()


def test_help_answers_in_under_four_tenths_of_a_second(root):
    times = []
    for _ in range(7):
        start = time.perf_counter()
        done = highwall_process("--help", root=root)
        times.append(time.perf_counter() - start)
        assert done.returncode == 0
        if times[-1] < 0.4:
            break
    assert min(times) < 0.4, times


def test_help_lists_every_verb_with_its_summary(capsys):
    assert highwall.main(["--help"]) == 0
    text = capsys.readouterr().out
    for verb, (_, summary) in highwall.VERBS.items():
        assert f"  {verb} " in text
        assert summary in text
    assert max(map(len, text.splitlines())) <= 100


@pytest.mark.parametrize("verb", ["", *highwall.VERBS])
def test_help_imports_nothing_heavy_and_no_module_of_another_room(root, verb):
    script = (
        "import atexit, sys, highwall\n"
        "atexit.register(lambda: print(*sys.modules, file=sys.stderr))\n"
        "sys.exit(highwall.main(sys.argv[1:]))\n"
    )
    command = [sys.executable, "-c", script, *filter(None, [verb]), "--help"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert verb in done.stdout
    loaded = set(done.stderr.split())
    assert not loaded & set(HEAVY)
    room = highwall.VERBS[verb][0].partition(".")[0] if verb else ""
    ours = {name for name in loaded if name.split(".")[0] in ("toolkit", "targets", "benchmarks", "twin_client")}
    elsewhere = {name for name in ours if name.partition(".")[0] != room}
    assert elsewhere <= {"targets", "targets.runtime", "targets.runtime.errors", "targets.runtime.guard"}


@pytest.mark.parametrize("verb", highwall.VERBS)
def test_every_verb_has_its_two_functions_in_its_room(verb):
    commands = import_module(f"{highwall.VERBS[verb][0]}.commands")
    assert callable(getattr(commands, f"{verb}_arguments"))
    assert callable(getattr(commands, verb))


def test_an_unknown_verb_names_the_nearest_one_and_exits_2(capsys):
    assert highwall.main(["inspct", "x.highwall"]) == 2
    assert one_line(capsys) == "highwall: no verb 'inspct'; did you mean `inspect`?"


@pytest.mark.parametrize("arguments", [[], ["qqqq"], ["--verbose"], [""]])
def test_without_a_near_verb_the_line_points_at_the_help(capsys, arguments):
    assert highwall.main(arguments) == 2
    assert "highwall --help" in one_line(capsys)


def test_what_follows_a_double_dash_reaches_the_verb_as_words(echo):
    heard = []
    echo(lambda args: heard.extend(args.words) or 0)
    assert highwall.main(["echo", "a", "--", "--count", "-b"]) == 0
    assert heard == ["a", "--count", "-b"]


def test_the_verb_s_exit_code_is_the_process_s(echo):
    echo(lambda args: args.count)
    assert highwall.main(["echo", "--count", "7"]) == 7


@pytest.mark.parametrize("bad", [["--count", "many"], ["--cou", "2"], ["--nonsense"]])
def test_a_bad_flag_is_one_line_and_exit_2(echo, capsys, bad):
    echo(lambda args: 0)
    with pytest.raises(SystemExit) as stop:
        highwall.main(["echo", *bad])
    assert stop.value.code == 2
    assert one_line(capsys).endswith("see `highwall echo --help`")


def test_a_user_s_mistake_is_one_line_and_exit_1(echo, capsys):
    echo(fail_with(HighwallError("no chips in pit/;\nput chips.npz there")))
    assert highwall.main(["echo"]) == 1
    assert one_line(capsys) == "highwall: no chips in pit/; put chips.npz there"


@pytest.mark.parametrize(("package", "extra"), [("torch", "toolkit"), ("onnxruntime", "ort"), ("shapefile", "geo")])
def test_a_missing_extra_is_named(echo, capsys, monkeypatch, package, extra):
    monkeypatch.setitem(sys.modules, package, None)
    echo(lambda args: import_module(f"{package}.anything"))
    assert highwall.main(["echo"]) == 1
    assert one_line(capsys).endswith(f"pip install 'highwall[{extra}]'")


def test_every_extra_the_door_names_exists_and_brings_the_package(project):
    distribution = {"shapefile": "pyshp"}
    for package, extra in highwall.EXTRAS.items():
        wanted = distribution.get(package, package.replace("_", "-"))
        assert wanted in project["project"]["optional-dependencies"][extra]


@pytest.mark.parametrize(
    "bug",
    [
        ModuleNotFoundError("no", name="toolkit.trian"),
        ValueError("x"),
        OSError(errno.EIO, "input/output error"),
    ],
    ids=["our own module", "ValueError", "OSError"],
)
def test_a_bug_stays_a_traceback(echo, bug):
    echo(fail_with(bug))
    with pytest.raises(type(bug)):
        highwall.main(["echo"])


def test_ctrl_c_is_one_line_and_exit_130(root, tmp_path):
    process = start_with_room(root, tmp_path, "import time; print('ready', flush=True); time.sleep(60)")
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    _, complaint = process.communicate(timeout=30)
    assert (process.returncode, complaint) == (130, "highwall: interrupted\n")


def test_a_reader_that_leaves_early_is_met_with_silence(root, tmp_path):
    process = start_with_room(root, tmp_path, "import sys; sys.stdin.read(); print('x' * 300_000)")
    process.stdout.close()
    process.stdin.close()
    assert process.stderr.read() == ""
    assert process.wait(timeout=30) == 141


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_under_the_output_is_one_line_and_exit_1(root):
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "highwall", "--help"]
        done = subprocess.run(command, cwd=root, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("highwall: cannot write the output: ")
    assert done.stderr.count("\n") == 1


def test_a_real_verb_on_a_missing_file_is_one_line_that_names_it(root, tmp_path):
    missing = tmp_path / "gone.highwall"
    for verb in ("inspect", "verify"):
        done = highwall_process(verb, str(missing), root=root)
        assert done.returncode == 1
        assert done.stderr.startswith("highwall: ")
        assert str(missing) in done.stderr
        assert done.stderr.count("\n") == 1
        assert done.stdout == ""


def start_with_room(root: Path, folder: Path, body: str) -> subprocess.Popen:
    """Start a process whose verb `echo` runs `body`, with all three streams as pipes."""
    (folder / "fakeroom").mkdir()
    (folder / "fakeroom" / "__init__.py").touch()
    (folder / "fakeroom" / "commands.py").write_text(FAKE_ROOM.format(body=body))
    script = "import sys, highwall; highwall.VERBS['echo'] = ('fakeroom', ''); sys.exit(highwall.main(['echo']))"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(root), str(folder)])}
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", script]
    return subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
