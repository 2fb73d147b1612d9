"""Execution: one answer to each command, none run twice, none after its time, over kills and full disks."""

import asyncio
import os
import random
import resource
import signal
import sqlite3
import subprocess
import sys
import time

import msgspec
import pytest
from reference_twin import NOW

from targets.runtime.errors import HighwallError
from twin_client.protocol.errors import ProtocolError
from twin_client.protocol.orders import ORDERS, Answer, Command, arguments_of, pack, to_json, unpack
from twin_client.protocol.records import ClockQuality, Stamp
from twin_client.services import execution as room
from twin_client.services.execution import Done, Execution, Failed, Refused
from twin_client.services.journal import Journal, Memory

START = int(NOW.timestamp() * 1e6)
MINUTE = 60_000_000
ARGUMENTS = {
    "pair_tag": {"tag": "tag-7"},
    "unpair_tag": {"tag": "tag-7"},
    "set_sensor_calibration": {"tag": "tag-7", "quantity": "strain", "calibration": {"version": 2}},
    "update_model": {"url": "https://twin.example/m", "sha256": "0" * 64, "size": 10},
    "reconfigure": {"number": 3, "settings": {}},
}


def command(name="pair_tag", command_id="a", issued=START, life=10 * MINUTE, gateway="pit-7", **arguments):
    given = arguments or ARGUMENTS.get(name, {})
    return Command(1, gateway, command_id, "ann", issued, issued + life, name, given)


class Agent:
    """A gateway over a folder: `ran` is what its handlers did, `sent` what the twin got."""

    def __init__(self, folder, memory=None, clock=ClockQuality.NETWORK, names=tuple(ORDERS)):
        self.folder, self.memory, self.clock, self.names = folder, memory, clock, names
        self.wall, self.ran, self.sent, self.behave = START, [], [], {}
        self.begin()

    def begin(self):
        """Start, or start again after a kill."""
        self.journal = Journal(self.folder / "commands.sqlite", self.memory)
        handlers = {name: self.handler(name) for name in self.names}
        self.room = Execution(self.journal, "pit-7", handlers, self.now, self.sent.append)

    def handler(self, name):
        async def handle(arguments):
            self.ran.append((name, arguments))
            what = self.behave.get(name)
            return await what(arguments) if what else f"{name} is done"

        return handle

    def now(self):
        return Stamp(self.wall, 1, "boot", self.clock)

    def idle(self):
        return not self.room._waiting and not self.journal.open_commands()

    def work(self, *commands, until=None):
        """Receive, and run until nothing waits, or `until`; returns the answers that came of it."""
        before = len(self.sent)

        async def go():
            running = asyncio.create_task(self.room.run())
            await asyncio.sleep(0)
            for each in commands:
                self.room.receive(each)
            async with asyncio.timeout(30):
                while not (until or self.idle)():
                    await asyncio.sleep(0.005)
            running.cancel()

        asyncio.run(go())
        return self.sent[before:]


@pytest.fixture
def agent(tmp_path):
    return Agent(tmp_path)


# --- one answer -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(ORDERS))
def test_every_command_of_the_list_is_run_and_answered_once(agent, name):
    (answer,) = agent.work(command(name))
    assert (answer.id, answer.outcome, answer.text) == ("a", "done", f"{name} is done")
    ((ran, arguments),) = agent.ran
    assert ran == name and type(arguments) is ORDERS[name].arguments
    assert agent.journal.find("a").answer == answer


def test_a_repeated_command_is_answered_again_and_not_run_again(agent):
    first = agent.work(command())
    agent.wall += 60 * MINUTE  # long expired by now
    assert agent.work(command(), command()) == first * 2
    agent.begin()
    assert agent.work(command()) == first
    assert len(agent.ran) == 1


def test_a_command_repeated_while_it_runs_is_run_once(agent):
    async def slow(_):
        await asyncio.sleep(0.05)
        return "at last"

    agent.behave["pair_tag"] = slow
    (answer,) = agent.work(command(), command(), command())
    assert answer.text == "at last" and len(agent.ran) == 1


def test_an_id_that_another_command_has_is_refused(agent):
    agent.work(command())
    (answer,) = agent.work(command("unpair_tag"))
    assert answer.outcome == "refused" and "another command" in answer.text
    assert agent.journal.find("a").answer.outcome == "done"


def test_what_a_handler_says_or_raises_is_the_answer(agent):
    async def done(_):
        return Done("good", {"mean": 0.5})

    async def refused(_):
        raise Refused("no such tag")

    async def failed(_):
        raise Failed("too far off\x1b[2J\n", {"mean": 0.9})

    async def bug(_):
        return {}["missing"]

    async def late(_):
        raise TimeoutError("port")

    for number, (handler, outcome, text, figures) in enumerate(
        (
            (done, "done", "good", {"mean": 0.5}),
            (refused, "refused", "no such tag", {}),
            (failed, "failed", "too far off?[2J?", {"mean": 0.9}),
            (bug, "failed", "KeyError: 'missing'", {}),
            (late, "failed", "TimeoutError: port", {}),
        )
    ):
        agent.behave["pair_tag"] = handler
        (answer,) = agent.work(command(command_id=str(number)))
        assert (answer.outcome, answer.text, answer.figures) == (outcome, text, figures)
        assert unpack(Answer, pack(answer)) == answer


def test_a_handler_that_hangs_is_ended_and_the_next_command_runs(agent, monkeypatch):
    async def hang(_):
        await asyncio.sleep(60)

    monkeypatch.setitem(ORDERS, "pair_tag", msgspec.structs.replace(ORDERS["pair_tag"], limit=0.05))
    agent.behave["pair_tag"] = hang
    first, second = agent.work(command(), command("unpair_tag", "b"))
    assert (first.outcome, second.outcome) == ("failed", "done") and "not done in 0.05 s" in first.text


# --- refusals -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("order", "says"),
    [
        (command("format_disk"), "no command 'format_disk'"),
        (command("pair_tag", tag="../x"), "tag"),
        (command("pair_tag", tag="a", extra=1), "extra"),
        (command("update_model", url="http://a/m", sha256="0" * 64, size=1), "url"),
        (command("update_model", url="https://a/m", sha256="0" * 64, size=2**40), "size"),
        (command("update_model", url="https://a/m", sha256="0" * 63, size=1), "sha256"),
        (command(issued=START - 11 * MINUTE), "expired 60 s ago"),
        (command(issued=START + 90 * MINUTE), "future"),
        (command(life=31 * 1440 * MINUTE), "longer than 30 days"),
        (command(gateway="pit-8"), "for pit-8"),
    ],
)
def test_what_is_unknown_malformed_or_untimely_is_refused_and_not_run(agent, order, says):
    (answer,) = agent.work(order)
    assert answer.outcome == "refused" and says in answer.text and "\n" not in answer.text
    assert agent.ran == []


def test_a_command_without_its_handler_is_refused(tmp_path):
    agent = Agent(tmp_path, names=("restart",))
    (answer,) = agent.work(command("capture_now"))
    assert answer.outcome == "refused"


def test_a_refusal_is_final_though_its_reason_has_gone(agent):
    agent.clock = ClockQuality.LOST
    first = agent.work(command())
    agent.clock = ClockQuality.SATELLITE
    assert agent.work(command()) == first
    assert agent.work(command(command_id="b"))[0].outcome == "done"


def test_while_the_clock_is_lost_only_harmless_commands_run(agent):
    agent.clock, agent.wall = ClockQuality.LOST, START - 20 * 1440 * MINUTE  # weeks back
    answers = agent.work(*(command(name, name) for name in ORDERS))
    done = {answer.id for answer in answers if answer.outcome == "done"}
    assert done == {"capture_now", "send_diagnostics"} == {name for name, order in ORDERS.items() if order.harmless}
    assert len(answers) == len(ORDERS)


def test_while_the_clock_is_lost_what_has_surely_expired_is_refused_even_if_harmless(agent):
    agent.clock = ClockQuality.LOST
    (answer,) = agent.work(command("capture_now", issued=START - 11 * MINUTE))
    assert answer.outcome == "refused" and "expired" in answer.text


def test_a_long_command_makes_others_wait_but_delays_no_refusal(agent):
    order = []

    async def slow(_):
        await asyncio.sleep(0.2)
        order.append("slow")
        return "x"

    agent.behave["update_model"] = slow
    answers = agent.work(command("update_model", "slow"), command("x", "bad"), command(command_id="next"))
    assert [answer.id for answer in answers] == ["bad", "slow", "next"]
    assert [name for name, _ in agent.ran] == ["update_model", "pair_tag"]


def test_a_command_that_expires_while_it_waits_is_not_run(agent):
    async def slow(_):
        agent.wall += 20 * MINUTE
        return "x"

    agent.behave["update_model"] = slow
    _, waited = agent.work(command("update_model", "slow", life=60 * MINUTE), command(command_id="b"))
    assert waited.outcome == "refused" and "expired" in waited.text


def test_a_flood_is_refused_beyond_a_bound_and_remembered_within_one(tmp_path):
    agent = Agent(tmp_path, Memory(count=3, margin=0.0, most=60))

    async def slow(_):
        await asyncio.sleep(0.01)
        return "x"

    agent.behave["pair_tag"] = slow
    answers = agent.work(*(command(command_id=str(number)) for number in range(80)))
    outcomes = [answer.outcome for answer in answers]
    assert len(answers) == 80 and len({answer.id for answer in answers}) == 80
    assert outcomes.count("done") == len(agent.ran) == 32
    assert sum("remembered" in answer.text for answer in answers) == 20
    agent.wall += 11 * MINUTE
    agent.work(command(command_id="later", issued=agent.wall))
    rows = sqlite3.connect(tmp_path / "commands.sqlite").execute("SELECT id FROM command ORDER BY number").fetchall()
    assert [row for (row,) in rows] == ["57", "58", "59", "later"]


# --- over ends of the agent -----------------------------------------------------------------------------


def interrupted(agent, order):
    """The agent dies while the command runs, and starts again."""
    before = len(agent.ran)

    async def forever(_):
        await asyncio.Event().wait()

    agent.behave[order.name] = forever
    agent.work(order, until=lambda: len(agent.ran) > before)
    agent.behave.clear()
    agent.begin()


@pytest.mark.parametrize("name", sorted(ORDERS))
def test_a_command_that_the_agent_died_in_is_answered_or_run_again_as_its_order_says(agent, name):
    interrupted(agent, command(name))
    agent.work()
    agent.room.resend()
    answer = agent.sent[-1]
    order = ORDERS[name]
    assert len(agent.ran) == 1 + order.repeatable
    expected = "done" if order.repeatable or order.ends_agent else "failed"
    assert answer.outcome == expected
    assert ("interrupted" in answer.text) == (expected == "failed")
    ran = len(agent.ran)
    assert agent.work(command(name)) == [answer] and len(agent.ran) == ran


def test_a_repeatable_command_that_ends_the_agent_every_time_is_given_up(agent):
    interrupted(agent, command("update_model", life=600 * MINUTE))
    for _ in range(2):
        interrupted(agent, command("update_model", life=600 * MINUTE))
    agent.work()
    assert len(agent.ran) == 3
    agent.room.resend()
    assert agent.sent[-1].outcome == "failed" and "3 times" in agent.sent[-1].text


def test_a_repeatable_command_is_not_run_again_after_its_expiry(agent):
    agent.wall = START
    interrupted(agent, command())
    agent.wall += 11 * MINUTE
    agent.work()
    assert len(agent.ran) == 1 and agent.sent[-1].outcome == "refused"


def test_what_was_received_and_not_begun_is_run_after_a_kill(agent):
    agent.room.receive(command())
    agent.begin()
    assert [answer.outcome for answer in agent.work()] == ["done"]


def test_answers_are_sent_again_until_the_twin_has_them(agent):
    agent.work(command(command_id="a"), command(command_id="b"))
    agent.begin()
    agent.sent.clear()
    agent.room.resend()
    assert [answer.id for answer in agent.sent] == ["a", "b"]
    agent.room.delivered("a")
    agent.room.delivered("never heard of")
    agent.sent.clear()
    agent.begin()
    agent.room.resend()
    assert [answer.id for answer in agent.sent] == ["b"]


CHILD = """
import asyncio, os, sys
sys.path[:0] = [sys.argv[2]]
from pathlib import Path
from test_execution import Agent, command
agent = Agent(Path(sys.argv[1]))
async def slow(arguments):
    with open(Path(sys.argv[1]) / "ran", "a") as file:
        file.write(arguments.camera + "\\n"); file.flush(); os.fsync(file.fileno())
    await asyncio.sleep(0.002)
    return "x"
agent.behave["capture_now"] = slow
print("up", flush=True)
for number in range(40):
    agent.work(command("capture_now", f"c{number}", camera=f"c{number}"))
"""


def test_kill_9_at_random_points_runs_no_command_twice_and_answers_every_one(tmp_path, root):
    draw = random.Random(11)
    here = str(root / "tests" / "twin_client")
    for _ in range(4):
        child = subprocess.Popen([sys.executable, "-c", CHILD, tmp_path, here], cwd=root, stdout=subprocess.PIPE)
        child.stdout.readline()
        time.sleep(draw.uniform(0.0, 0.4))
        os.kill(child.pid, signal.SIGKILL)
        child.communicate()
    agent = Agent(tmp_path)
    for number in range(40):  # one by one: on a slow machine the children may have run too few to take them all at once
        agent.work(command("capture_now", f"c{number}", camera=f"c{number}"))
    ran = (tmp_path / "ran").read_text().split() + [arguments.camera for _, arguments in agent.ran]
    assert len(ran) == len(set(ran))
    assert agent.journal.open_commands() == []
    for number in range(40):
        answer = agent.journal.find(f"c{number}").answer
        assert answer.outcome == "done" or (answer.outcome == "failed" and "interrupted" in answer.text), answer


def test_a_run_that_is_cancelled_and_begun_again_in_one_process_runs_nothing_twice(agent):
    order = command("capture_now")

    async def forever(_):
        await asyncio.Event().wait()

    agent.behave["capture_now"] = forever
    agent.work(order, until=lambda: agent.ran)
    (answer,) = agent.work()
    assert "interrupted" in answer.text and len(agent.ran) == 1


# --- the journal ----------------------------------------------------------------------------------------


def test_a_damaged_journal_is_set_aside_and_older_commands_are_not_run_again(agent, tmp_path):
    agent.work(command())
    path = tmp_path / "commands.sqlite"
    agent.journal.close()
    path.write_bytes(os.urandom(3000))
    agent.wall += MINUTE
    agent.begin()
    (answer,) = agent.work(command())
    assert answer.outcome == "refused" and "journal" in answer.text and len(agent.ran) == 1
    (answer,) = agent.work(command(command_id="b", issued=agent.wall))
    assert answer.outcome == "done"
    assert (tmp_path / "commands.sqlite.damaged").exists()


def test_pages_of_the_journal_overwritten_never_run_a_command_twice(tmp_path):
    for seed in range(6):
        agent = Agent(tmp_path / str(seed))
        agent.work(*(command(command_id=str(number)) for number in range(8)))
        agent.journal.close()
        path, draw = agent.folder / "commands.sqlite", random.Random(seed)
        data = bytearray(path.read_bytes())
        for _ in range(40):
            data[draw.randrange(100, len(data))] ^= 1 << draw.randrange(8)
        path.write_bytes(data)
        agent.wall += 1
        try:
            agent.begin()
            agent.work(*(command(command_id=str(number)) for number in range(8)))
        except HighwallError:
            continue  # met later than at the start: told, not run
        ran = len(agent.ran)
        assert ran == 8, seed


def test_an_id_spoilt_in_any_of_its_places_in_the_journal_runs_no_command_twice(tmp_path):
    """In the row, in the packed command, in the answer and in the index, which is searched and is no row."""
    name, at, places = b"a-name-of-its-own", -1, 0
    while True:
        agent = Agent(tmp_path / str(places))
        agent.work(command(command_id=name.decode()))
        agent.journal.close()
        path = agent.folder / "commands.sqlite"
        data = path.read_bytes()
        at = data.find(name, at + 1)
        if at < 0:
            break
        path.write_bytes(data[:at] + b"b" + data[at + 1 :])
        agent.wall += 1
        agent.begin()
        agent.work(command(command_id=name.decode()))
        assert len(agent.ran) == 1, places
        places += 1
    assert places >= 4


def test_a_journal_that_cannot_be_written_takes_no_command_and_says_so(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(HighwallError, match="journal"):
        Journal(tmp_path / "file" / "commands.sqlite")


def test_on_a_full_disk_nothing_runs_that_could_not_be_remembered(tmp_path, root):
    script = f"""
import resource, signal, sys
sys.path[:0] = [{str(root / "tests" / "twin_client")!r}]
from pathlib import Path
from test_execution import Agent, HighwallError, command
agent = Agent(Path({str(tmp_path)!r}))
agent.work(command())
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
try:
    agent.work(command(command_id="b"))
except HighwallError as error:
    print(len(agent.ran), error)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True, check=False)
    assert done.stdout.startswith("1 the journal of commands"), done.stdout + done.stderr
    agent = Agent(tmp_path)
    assert agent.work(command(command_id="b"))[0].outcome == "done"
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 100


def test_an_answer_that_the_disk_does_not_take_waits_and_the_command_is_not_run_again(agent, monkeypatch):
    monkeypatch.setattr(room, "_PATIENCE", 0.02)
    real, refusals = agent.journal.answered, [3]

    def full(answer):
        refusals[0] -= 1
        if refusals[0] >= 0:
            raise HighwallError("no space")
        real(answer)

    monkeypatch.setattr(agent.journal, "answered", full)
    (answer,) = agent.work(command())
    assert answer.outcome == "done" and len(agent.ran) == 1 and refusals[0] < 0


# --- the wire -------------------------------------------------------------------------------------------


def test_junk_is_no_command():
    good = pack(command())
    for data in (b"", b"\xc1", good[:-1], to_json(command()), b"\x80", pack(command())[::-1]):
        with pytest.raises(ProtocolError):
            unpack(Command, data)
    assert unpack(Command, good) == command()


def test_a_command_that_expires_before_it_is_issued_is_none():
    with pytest.raises(ProtocolError, match="expires"):
        unpack(Command, msgspec.msgpack.encode({**msgspec.to_builtins(command()), "expires": START - 1}))
    assert arguments_of(command()).tag == "tag-7"
