"""What the journal of commands promises when it was lost, when its disk fails in between, and when it is an old one."""

import sqlite3

import pytest
from test_execution import MINUTE, START, Agent, command

from targets.runtime.errors import HighwallError
from twin_client.protocol.orders import pack
from twin_client.protocol.records import ClockQuality
from twin_client.services import execution as room
from twin_client.services.journal import Memory


@pytest.fixture
def agent(tmp_path):
    return Agent(tmp_path)


def damage(agent):
    """The journal, as a power cut may leave it."""
    agent.journal.close()
    (agent.folder / "commands.sqlite").write_bytes(b"garbage" * 1000)
    agent.wall += MINUTE


def restart(agent):
    agent.journal.close()
    agent.wall += MINUTE
    agent.begin()


def refused_once(agent, order):
    """Whether a command was refused, and not run."""
    ran = len(agent.ran)
    (answer,) = agent.work(order)
    return answer.outcome == "refused" and len(agent.ran) == ran


# --- a journal that was lost --------------------------------------------------------------------------------------


@pytest.mark.parametrize("times", [1, 2])
def test_a_command_from_before_the_damage_is_refused_after_any_number_of_restarts(agent, times):
    old = command("capture_now", life=24 * 60 * MINUTE)
    agent.work(old)
    for _ in range(times):
        damage(agent)
        agent.begin()  # and nothing comes
    for _ in range(3):
        restart(agent)
    assert refused_once(agent, old)
    restart(agent)
    (answer,) = agent.work(command(command_id="b", issued=agent.wall))
    assert answer.outcome == "done"
    assert len(agent.ran) == 2


@pytest.mark.parametrize("left", ["nothing", "an empty file"])
def test_a_kill_between_setting_the_journal_aside_and_a_new_one_forgets_nothing(agent, left):
    old = command("capture_now", life=24 * 60 * MINUTE)
    agent.work(old)
    damage(agent)
    path = agent.folder / "commands.sqlite"
    path.replace(agent.folder / "commands.sqlite.damaged")
    if left == "an empty file":
        path.touch()
    agent.begin()
    assert refused_once(agent, old)


def test_a_first_journal_refuses_nothing_that_was_issued_before_it(agent):
    (answer,) = agent.work(command(issued=START - MINUTE))
    assert answer.outcome == "done"
    assert not agent.journal.born_anew


def test_while_the_time_is_not_known_only_what_may_be_repeated_runs_and_then_it_is_kept(agent):
    ran = command("capture_now", life=24 * 60 * MINUTE)
    agent.work(ran)
    damage(agent)
    agent.clock, agent.wall = ClockQuality.LOST, START - 5 * MINUTE  # woke with the time that was kept last
    agent.begin()
    assert refused_once(agent, ran)
    (answer,) = agent.work(command("send_diagnostics", "d"))
    assert answer.outcome == "done"
    restart(agent)
    assert agent.journal.birth is None
    agent.clock, agent.wall = ClockQuality.NETWORK, START + 5 * MINUTE
    assert refused_once(agent, command("capture_now", "other", issued=START + 4 * MINUTE))
    (answer,) = agent.work(command("capture_now", "new", issued=START + 5 * MINUTE))
    assert answer.outcome == "done"
    birth = agent.journal.birth
    restart(agent)
    assert agent.journal.birth == birth == START + 5 * MINUTE


def test_the_time_of_birth_is_reckoned_back_to_the_start_of_the_agent(agent, monkeypatch):
    """So that the first command after the clock was set is not refused for having been on its way."""
    damage(agent)
    agent.clock = ClockQuality.LOST
    agent.begin()
    now = agent.room._now
    agent.clock, agent.wall = ClockQuality.NETWORK, START + 10 * MINUTE
    monkeypatch.setattr(
        agent.room, "_now", lambda: room.Stamp(agent.wall, now().mono + 4 * MINUTE, "boot", agent.clock)
    )
    (answer,) = agent.work(command("capture_now", "x", issued=START + 7 * MINUTE))
    assert answer.outcome == "done"
    assert agent.journal.birth == START + 6 * MINUTE


def test_a_wrong_clock_at_its_birth_does_not_close_the_gateway_until_then(agent):
    damage(agent)
    agent.wall += 3000 * 1440 * MINUTE
    agent.begin()
    agent.journal.close()
    agent.wall = START
    agent.begin()
    (answer,) = agent.work(command(issued=START + MINUTE))
    assert answer.outcome == "done"


def test_a_birth_that_the_disk_did_not_take_is_kept_with_the_first_command(agent, monkeypatch):
    agent.work(command("capture_now", life=24 * 60 * MINUTE))
    damage(agent)
    real = room.Journal.was_born

    def full(*_):
        raise HighwallError("no space")

    monkeypatch.setattr(room.Journal, "was_born", full)
    agent.begin()
    with pytest.raises(HighwallError):
        agent.room.receive(command("capture_now", "x", issued=agent.wall))
    monkeypatch.setattr(room.Journal, "was_born", real)
    assert refused_once(agent, command("capture_now", life=24 * 60 * MINUTE))
    assert len(agent.ran) == 1


def test_a_journal_of_the_version_before_goes_on(tmp_path):
    before = command(command_id="open")
    base = sqlite3.connect(tmp_path / "commands.sqlite")
    base.execute(
        "CREATE TABLE command (number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, body BLOB NOT NULL,"
        " until INTEGER NOT NULL, begun INTEGER NOT NULL DEFAULT 0, answer BLOB, sent INTEGER NOT NULL DEFAULT 0)"
    )
    base.execute("INSERT INTO command (id, body, until) VALUES (?, ?, ?)", ("open", pack(before), before.expires))
    base.commit()
    base.close()
    agent = Agent(tmp_path)
    assert not agent.journal.born_anew
    assert [answer.id for answer in agent.work()] == ["open"]
    restart(agent)
    assert [answer.outcome for answer in agent.work(before, command(command_id="b"))] == ["done", "done"]
    assert len(agent.ran) == 2
    damage(agent)
    agent.begin()
    restart(agent)
    assert refused_once(agent, before)


# --- refusals on a failing disk -----------------------------------------------------------------------------------


def test_a_refusal_and_its_command_are_written_at_once(agent, monkeypatch):
    """Between two writes the disk may fail, and a restart would run what its issuer was told to send anew."""
    agent.clock = ClockQuality.LOST

    def full(_):
        raise HighwallError("no space")

    monkeypatch.setattr(agent.journal, "answered", full)
    agent.room.receive(command("unpair_tag"))
    assert [answer.outcome for answer in agent.sent] == ["refused"]
    assert agent.journal.open_commands() == []
    agent.clock = ClockQuality.NETWORK
    restart(agent)
    agent.work()
    assert agent.work(command("unpair_tag"))[-1].outcome == "refused"
    assert agent.ran == []


def test_what_the_disk_did_not_take_stays_refused_under_its_id(agent, monkeypatch):
    real = agent.journal.received

    def full(*_):
        raise HighwallError("no space")

    monkeypatch.setattr(agent.journal, "received", full)
    with pytest.raises(HighwallError):  # the caller says: refused, send it again under another id
        agent.room.receive(command())
    monkeypatch.setattr(agent.journal, "received", real)
    (answer,) = agent.work(command())
    assert answer.outcome == "refused" and "under another id" in answer.text
    restart(agent)
    assert agent.work(command())[-1].outcome == "refused"
    assert agent.ran == []
    assert agent.work(command(command_id="b"))[-1].outcome == "done"


def test_what_found_no_room_stays_refused_under_its_id(tmp_path):
    agent = Agent(tmp_path, Memory(count=0, margin=0.0, most=1))
    agent.work(command())
    (answer,) = agent.work(command(command_id="b", life=60 * MINUTE))
    assert answer.outcome == "refused" and "remembered" in answer.text
    agent.wall += 20 * MINUTE
    (answer,) = agent.work(command(command_id="b", life=60 * MINUTE))
    assert answer.outcome == "refused" and len(agent.ran) == 1


def test_the_ids_that_were_turned_away_do_not_fill_the_memory(agent, monkeypatch):
    monkeypatch.setattr(room, "_MOST_TURNED_AWAY", 3)
    for number in range(10):
        agent.room._turn_away(command(command_id=str(number)))
    assert list(agent.room._turned_away) == ["7", "8", "9"]
