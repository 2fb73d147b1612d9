"""Enrolment beside a running agent, which asks with the same request as the person at the keyboard; and what is said
of a renewal."""

import asyncio
import itertools
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
from reference_twin import Authority, Twin, stamp

from targets.runtime.errors import HighwallError
from twin_client.agent import Agent
from twin_client.services import tls
from twin_client.services.registration import Identity, Pace, Registration

QUICK = Pace(first=0.02, most=0.05)
REFUSED = {"version": 1, "state": "refused", "text": "the code is spent"}


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@pytest.fixture
def twin(authority: Authority, tmp_path: Path) -> Iterator[Twin]:
    with Twin(authority, authority.server(tmp_path)) as running:
        yield running


def asker(tmp_path: Path, seed: int = 1) -> Registration:
    """One of the processes that ask: nothing is shared but the folder."""
    return Registration(tmp_path / "identity", stamp, QUICK, seed=seed)


def both(*askers: Registration) -> list[Identity | BaseException]:
    async def wait() -> list[Identity | BaseException]:
        waits = (each.wait(lambda _: None) for each in askers)
        return await asyncio.wait_for(asyncio.gather(*waits, return_exceptions=True), 20)

    return asyncio.run(wait())


# --- two who ask --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_the_agent_and_a_person_who_ask_with_one_request_are_both_enrolled(twin, tmp_path, seed) -> None:
    twin.approve_after = 4
    person, agent = asker(tmp_path, seed), asker(tmp_path, seed + 100)
    person.begin(twin.url, twin.authority.invite(), "pit-7")
    held = both(person, agent)
    assert held == [person.identity()] * 2
    assert len({body["request"] for body in twin.received}) == 1
    held[0].context()


def test_who_begins_to_wait_when_the_other_is_approved_already_has_the_identity(twin, tmp_path) -> None:
    person, agent = asker(tmp_path), asker(tmp_path)
    person.begin(twin.url, twin.authority.invite(), "pit-7")
    assert both(agent) == both(person) == [person.identity()]
    assert len(twin.received) == 1
    assert asyncio.run(person.ask()).state == "approved"  # as with --no-wait


@pytest.mark.parametrize("later", ["the same, at once", "the same", "refused", "nonsense"])
def test_of_two_answers_to_one_request_the_first_makes_the_identity(twin, tmp_path, monkeypatch, later) -> None:
    """Both have asked before the twin answers either."""
    barrier, numbers, enrol = threading.Barrier(2, timeout=10), itertools.count(), twin.enrol

    def together(body: dict, peer: str | None) -> dict:
        number, answer = next(numbers), enrol(body, peer)
        barrier.wait()
        if number == 0 or later == "the same, at once":
            return answer
        while not (tmp_path / "identity/current").exists() or (tmp_path / "identity/pending").exists():
            time.sleep(0.01)
        return {"refused": REFUSED, "nonsense": {}}.get(later, answer)

    monkeypatch.setattr(twin, "enrol", together)
    person, agent = asker(tmp_path), asker(tmp_path)
    person.begin(twin.url, twin.authority.invite(), "pit-7")
    held = both(person, agent)
    assert held == [person.identity()] * 2
    held[0].context()
    left = {path.name for path in (tmp_path / "identity").iterdir()}
    assert left == {"current", held[0].key.parent.name}


def test_a_refusal_is_said_by_both_who_asked(twin, tmp_path, monkeypatch) -> None:
    barrier = threading.Barrier(2, timeout=10)
    monkeypatch.setattr(twin, "enrol", lambda body, peer: (barrier.wait(), REFUSED)[1])
    person, agent = asker(tmp_path), asker(tmp_path)
    person.begin(twin.url, twin.authority.invite(), "pit-7")
    for error in both(person, agent):
        assert isinstance(error, HighwallError) and "the code is spent" in str(error)
    assert person.pending() is None


def test_a_refusal_of_another_request_is_none_of_the_one_that_is_there_now(twin, tmp_path, monkeypatch) -> None:
    """The person begins anew while the agent waits for the answer to what was asked for before."""
    person, agent, enrol = asker(tmp_path), asker(tmp_path), twin.enrol

    def meanwhile(body: dict, peer: str | None) -> dict:
        if body["gateway"] == "pit-8":
            return enrol(body, peer)
        person.begin(twin.url, twin.authority.invite(), "pit-8", again=True)
        return REFUSED

    monkeypatch.setattr(twin, "enrol", meanwhile)
    person.begin(twin.url, twin.authority.invite(), "pit-7")
    (held,) = both(agent)
    assert held.gateway == "pit-8"


def test_who_is_enrolled_already_is_not_told_so_by_a_refused_request(twin, tmp_path) -> None:
    first, second = asker(tmp_path), asker(tmp_path)
    first.begin(twin.url, twin.authority.invite(), "pit-7")
    (before,) = both(first)
    for each in (first, second):
        each.begin(twin.url, twin.authority.invite(), "pit-8", again=True)
    twin.refuse = "no"
    for error in both(first) + both(second):
        assert isinstance(error, HighwallError) and "refuse" in str(error)
    assert first.identity() == before


def test_a_request_that_the_card_has_lost_is_made_again(twin, tmp_path) -> None:
    gateway = asker(tmp_path)
    gateway.begin(twin.url, twin.authority.invite(), "pit-7")
    (tmp_path / "identity/pending/request.pem").unlink()
    assert asyncio.run(gateway.ask()).state == "approved"


def test_a_renewal_of_what_was_replaced_meanwhile_changes_nothing(twin, tmp_path, monkeypatch) -> None:
    person, agent, enrol = asker(tmp_path), asker(tmp_path), twin.enrol
    person.begin(twin.url, twin.authority.invite(), "pit-7")
    both(person)

    def meanwhile(body: dict, peer: str | None) -> dict:
        if body["gateway"] == "pit-7":
            person.begin(twin.url, twin.authority.invite(), "pit-8", again=True)
            asyncio.run(person.wait(lambda _: None))
        return enrol(body, peer)

    monkeypatch.setattr(twin, "enrol", meanwhile)
    with pytest.raises(HighwallError, match="asks no more"):
        asyncio.run(agent.renew())
    assert agent.identity().gateway == "pit-8"
    agent.identity().context()


# --- what is said of a renewal ------------------------------------------------------------------------------------


@pytest.fixture
def enrolled(twin: Twin, tmp_path: Path) -> Registration:
    gateway = asker(tmp_path)
    gateway.begin(twin.url, twin.authority.invite(), "pit-7")
    asyncio.run(gateway.wait(lambda _: None))
    return gateway


def test_a_renewal_is_said_to_be_one_only_when_it_is(twin, enrolled) -> None:
    said: list[str] = []
    until = tls.day(enrolled.identity().ends)
    twin.approve_after = len(twin.received) + 2
    for _ in range(2):
        asyncio.run(enrolled.renew_and_say(said.append))
    waits = f"the certificate, good until {until}, is not renewed yet: waiting for Ann; it is asked for again"
    assert said == [waits]
    for _ in range(2):  # it is good news every time
        asyncio.run(enrolled.renew_and_say(said.append))
    assert said[1:] == ["the certificate is renewed"] * 2
    twin.approve_after = len(twin.received) + 1
    asyncio.run(enrolled.renew_and_say(said.append))
    assert said[3:] == [waits]


def test_each_new_reason_why_it_is_not_renewed_is_said_once(twin, enrolled) -> None:
    said: list[str] = []

    def tried(times: int = 3) -> str:
        before = len(said)
        for _ in range(times):
            asyncio.run(enrolled.renew_and_say(said.append))
        assert len(said) == before + 1 and "\n" not in said[-1]
        assert "is not renewed: " in said[-1] and "good until" in said[-1]
        return said[-1]

    twin.status = 503
    assert "answers 503" in tried()
    twin.status, twin.refuse = 200, "nobody knows pit-7"
    assert "nobody knows pit-7" in tried()
    twin.status = 503
    assert "answers 503" in tried()


def test_the_agent_says_what_comes_of_a_renewal(twin, enrolled, monkeypatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(enrolled, "renewal_due", lambda: True)
    twin.approve_after = len(twin.received) + 1
    agent = SimpleNamespace(registration=enrolled, say=said.append)

    async def live() -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(5):
                certificate = asyncio.ensure_future(Agent._certificate(agent))
                while not said:
                    await asyncio.sleep(0.01)
                certificate.cancel()

    asyncio.run(live())
    assert len(said) == 1 and "not renewed yet: waiting for Ann" in said[0]
