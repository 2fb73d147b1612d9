"""The uplink through a real broker: rows leave when the twin has them, and whatever happens it has each once."""

import json
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from linked import QUICK, Gateway, all_there_once, stamp, wait_for
from receiver import Receiver
from reference_twin import ACL, Authority, Papers, guarded_by

from benchmarks.loss.broker import Broker, free_port
from benchmarks.loss.link import Link
from twin_client.outbox import Outbox
from twin_client.protocol.delivery import Pace, Retry
from twin_client.protocol.records import ClockQuality, Measure, Reading, Stamp
from twin_client.uplink import Settings


def test_rows_leave_when_the_twin_says_that_it_has_them(broker: Broker, twin: Receiver, tmp_path: Path) -> None:
    with Gateway(tmp_path / "box", broker.port) as gateway:
        for _ in range(5):
            gateway.append(37)
        assert gateway.emptied()
    assert all_there_once(gateway, twin)
    assert twin.again == 0
    assert gateway.stopped_in < 2


def test_what_is_there_from_before_comes_too(broker: Broker, twin: Receiver, tmp_path: Path) -> None:
    port = free_port()
    with Gateway(tmp_path / "box", port) as gateway:
        gateway.append(700)
    with Gateway(tmp_path / "box", broker.port) as again:
        again.sent = gateway.sent
        assert again.emptied()
    assert all_there_once(again, twin)


def test_while_the_twin_is_silent_nothing_leaves(broker: Broker, twin: Receiver, tmp_path: Path) -> None:
    twin.silent = True
    with Gateway(tmp_path / "box", broker.port) as gateway:
        gateway.append(100)
        assert twin.until(lambda it: it.count() == 100)
        assert twin.until(lambda it: it.again > 0), "it is sent again"
        assert gateway.ask(gateway.outbox.count) == 100
        assert "nobody acknowledges" in gateway.uplink.state
        twin.silent = False
        assert gateway.emptied()
    assert all_there_once(gateway, twin)


def test_the_twin_may_be_away_and_come_back(broker: Broker, twin: Receiver, tmp_path: Path) -> None:
    with Gateway(tmp_path / "box", broker.port) as gateway:
        gateway.append(50)
        assert gateway.emptied()
        twin.leave()
        gateway.append(300)
        time.sleep(2.5)
        assert gateway.ask(gateway.outbox.count) == 300
        twin.come()
        assert gateway.emptied()
    assert all_there_once(gateway, twin)


def test_a_broker_killed_without_its_memory_loses_nothing(broker: Broker, twin: Receiver, tmp_path: Path) -> None:
    with Gateway(tmp_path / "box", broker.port) as gateway:
        gateway.append(200)
        broker.kill()
        broker.forget()
        gateway.append(200)
        time.sleep(0.5)
        broker.start()
        gateway.append(200)
        assert gateway.emptied()
    assert all_there_once(gateway, twin)


def test_a_link_that_stalls_is_noticed_and_costs_nothing(broker: Broker, twin: Receiver, tmp_path: Path) -> None:
    with Link(broker.port) as link, Gateway(tmp_path / "box", link.port) as gateway:
        gateway.append(100)
        assert gateway.emptied()
        link.stall()
        gateway.append(100)
        time.sleep(2)
        assert gateway.ask(gateway.outbox.count) == 100
        assert "no answer" in " ".join(gateway.said)
        link.flow()
        assert gateway.emptied()
    assert all_there_once(gateway, twin)


def test_over_a_slow_link_less_goes_at_once_until_it_arrives(broker: Broker, twin: Receiver, tmp_path: Path) -> None:
    patient = msgspec.structs.replace(QUICK, pace=Pace(wait=0.5, least_rows=1))
    with Link(broker.port, rate=8000) as link, Gateway(tmp_path / "box", link.port, patient) as gateway:
        gateway.append(300)
        assert gateway.emptied(60)
        assert gateway.uplink.counters["bytes"] > 20_000, "a batch of fifty is more than half a second of this link"
        assert gateway.uplink.counters["bytes"] < 120_000, "what goes up twice is less than what goes up once"
    assert all_there_once(gateway, twin)


def test_it_stops_at_once_over_a_link_that_hangs(broker: Broker, twin: Receiver, tmp_path: Path) -> None:
    with Link(broker.port) as link:
        with Gateway(tmp_path / "box", link.port) as gateway:
            gateway.append(10)
            assert gateway.emptied()
            link.stall()
        assert gateway.stopped_in < 4


def test_connections_that_break_all_the_time_lose_nothing(broker: Broker, twin: Receiver, tmp_path: Path) -> None:
    with Link(broker.port) as link, Gateway(tmp_path / "box", link.port) as gateway:
        for _ in range(12):
            gateway.append(83)
            time.sleep(0.1)
            link.cut()
        assert gateway.emptied()
    assert all_there_once(gateway, twin)


def test_with_thingsboard_the_puback_is_the_word(broker: Broker, tmp_path: Path) -> None:
    with Gateway(tmp_path / "box", broker.port, dialect="thingsboard") as gateway, telemetry(broker.port) as told:
        gateway.append(10)
        assert gateway.emptied()
        for _ in range(3):
            gateway.append(100)
        assert gateway.emptied()
        assert wait_for(lambda: len(numbers(told)) >= 300)
    assert sorted(set(numbers(told)) | set(range(1, 11))) == list(range(1, 311))
    assert ["v1/gateway/connect", {"device": "tag-7", "type": "tag"}] in told


def test_a_puback_that_says_nobody_is_there_is_no_acknowledgement(broker: Broker, tmp_path: Path) -> None:
    """mosquitto answers "no matching subscribers": the message is gone, though MQTT counts that as a success."""
    with Gateway(tmp_path / "box", broker.port, dialect="thingsboard") as gateway:
        gateway.append(10)
        assert wait_for(lambda: gateway.uplink.counters["refused"] > 1)
        assert gateway.ask(gateway.outbox.count) == 10
        with telemetry(broker.port) as told:
            assert gateway.emptied()
            assert sorted(set(numbers(told))) == list(range(1, 11))


def test_the_twin_sees_who_is_there(broker: Broker, twin: Receiver, tmp_path: Path) -> None:
    def online() -> list[bool]:
        return [json.loads(payload)["online"] for topic, payload in list(twin.said) if topic == "mine/gw-1/status"]

    with Link(broker.port) as link:
        with Gateway(tmp_path / "box", link.port):
            assert wait_for(lambda: online() == [True])
            link.stall()
            assert wait_for(lambda: online() == [True, False], 15), "the last will"
            link.flow()
            assert wait_for(lambda: online()[-1])
        assert wait_for(lambda: not online()[-1])


def test_two_weeks_offline_come_whole(broker: Broker, twin: Receiver, tmp_path: Path) -> None:
    """Simulated time: 20 tags each ten minutes for 14 days, from a gateway that was switched off every night."""
    begin, step, rounds = 1_763_000_000_000_000, 600_000_000, 14 * 144
    outbox = Outbox.open(tmp_path / "box", "gw-1", stamp=stamp, say=lambda line: None)
    for first in range(0, rounds, 48):
        records = [
            Reading(
                Stamp(begin + number * step, number % 144 * step, f"boot-{number // 144}", ClockQuality.HELD),
                f"tag-{tag}",
                1,
                number,
                {"strain": Measure(0.0)},
            )
            for number in range(first, first + 48)
            for tag in range(20)
        ]
        outbox.write(lambda t, records=records: t.append(records))
    outbox.close()
    with Gateway(tmp_path / "box", broker.port) as gateway:
        assert gateway.emptied(120)
    assert not [tag for tag in range(20) if twin.missing(f"tag-{tag}", 1, range(rounds))]
    assert not twin.twice()
    assert twin.again == 0


def test_the_newest_comes_first_after_an_outage(broker: Broker, twin: Receiver, tmp_path: Path) -> None:
    pace = Pace(flights=1, least_rows=10, most_rows=20, wait=5.0)
    with Gateway(tmp_path / "box", free_port()) as gateway:
        gateway.append(1500)
    with Gateway(tmp_path / "box", broker.port, Settings(tls=False, pace=pace, retry=QUICK.retry)) as gateway:
        assert twin.until(lambda it: it.count() > 0)
        gateway.append(10)
        assert twin.until(lambda it: it.tags["tag-7", 1, 1] > 0)
        assert twin.until(lambda it: any(entry.seq > 1500 for have in it.entries.values() for entry in have.values()))
        assert twin.count() < 1400, "the backlog is still coming"
        assert gateway.emptied()


# --- TLS ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def authority() -> Authority:
    return Authority()


@pytest.fixture
def guarded(mosquitto: None, authority: Authority, tmp_path: Path) -> Iterator[Broker]:
    """A broker that wants certificates, and lets each gateway say and hear only what is its own."""
    with guarded_by(tmp_path, authority, ACL) as broker:
        yield broker


SECURE = Settings(keepalive=2, connect=2.0, pace=Pace(wait=1.0), retry=Retry(first=0.05, most=0.2))


def twin_with(papers: Papers) -> ssl.SSLContext:
    context = papers.context()
    context.check_hostname = False  # it calls the broker by its number
    return context


def test_through_tls_with_certificates_and_access_rules(guarded: Broker, authority: Authority, tmp_path: Path) -> None:
    papers = Papers(tmp_path, authority)
    with Receiver(guarded.port, twin_with(Papers(tmp_path, authority, "twin"))) as twin:
        with Gateway(tmp_path / "box", guarded.port, SECURE, host="localhost", security=papers) as gateway:
            gateway.append(300)
            assert gateway.emptied()
        assert all_there_once(gateway, twin)


def test_what_the_access_rules_refuse_is_kept(mosquitto: None, authority: Authority, tmp_path: Path) -> None:
    """The broker answers with a PUBACK, which says no; aiomqtt alone would take it for a yes."""
    papers = Papers(tmp_path, authority)
    settings = msgspec.structs.replace(SECURE, confirm="puback")
    acl = ACL.replace("write mine/%u/up", "write mine/%u/elsewhere")
    with (
        guarded_by(tmp_path, authority, acl) as broker,
        Gateway(tmp_path / "box", broker.port, settings, host="localhost", security=papers) as gateway,
    ):
        gateway.append(20)
        assert wait_for(lambda: "not authorized" in " ".join(gateway.said)), gateway.said
        assert gateway.ask(gateway.outbox.count) == 20


def test_one_gateway_cannot_speak_as_another(guarded: Broker, authority: Authority, tmp_path: Path) -> None:
    with Receiver(guarded.port, twin_with(Papers(tmp_path, authority, "twin"))) as twin:
        papers = Papers(tmp_path, authority, "gw-9")
        with Gateway(tmp_path / "box", guarded.port, SECURE, host="localhost", security=papers) as gateway:
            gateway.append(20)
            assert wait_for(lambda: gateway.uplink.counters["connections"] > 1 or gateway.uplink.counters["refused"])
            assert gateway.ask(gateway.outbox.count) == 20
        assert twin.count() == 0


def test_a_topic_on_which_the_broker_hangs_up_does_not_keep_the_records_back(
    mosquitto: None, authority: Authority, tmp_path: Path
) -> None:
    acl = ACL.replace("pattern write mine/%u/reported\n", "")
    with (
        guarded_by(tmp_path, authority, acl) as broker,
        Receiver(broker.port, twin_with(Papers(tmp_path, authority, "twin"))) as twin,
        Gateway(
            tmp_path / "box",
            broker.port,
            SECURE,
            host="localhost",
            security=Papers(tmp_path, authority),
            reports=True,
        ) as gateway,
    ):
        gateway.append(20)
        assert gateway.emptied(), gateway.said
        assert all_there_once(gateway, twin)
        assert "mine/gw-1/reported" in " ".join(gateway.said)


def test_a_broker_of_another_ca_hears_nothing(guarded: Broker, authority: Authority, tmp_path: Path) -> None:
    papers = Papers(tmp_path, authority, trusts=Authority("another"))
    with Gateway(tmp_path / "box", guarded.port, SECURE, host="localhost", security=papers) as gateway:
        gateway.append(20)
        assert wait_for(lambda: "certificate verify failed" in " ".join(gateway.said))
        assert gateway.uplink.counters["connections"] == 0


def test_a_broker_with_another_name_hears_nothing(guarded: Broker, authority: Authority, tmp_path: Path) -> None:
    papers = Papers(tmp_path, authority)
    with Gateway(tmp_path / "box", guarded.port, SECURE, host="127.0.0.1", security=papers) as gateway:
        gateway.append(20)
        assert wait_for(lambda: "certificate verify failed" in " ".join(gateway.said)), gateway.said
        assert gateway.uplink.counters["connections"] == 0


def test_a_certificate_that_has_ended_is_not_believed(mosquitto: None, authority: Authority, tmp_path: Path) -> None:
    pem = authority.server(tmp_path, "localhost", begins=-20, ends=-10)
    with Broker(tmp_path / "broker", [f"certfile {pem}", f"keyfile {pem}"]) as broker:
        papers = Papers(tmp_path, authority)
        with Gateway(tmp_path / "box", broker.port, SECURE, host="localhost", security=papers) as gateway:
            gateway.append(20)
            assert wait_for(lambda: "ended on" in " ".join(gateway.said)), gateway.said
            assert gateway.uplink.counters["connections"] == 0


def test_without_a_certificate_nothing_is_sent(guarded: Broker, tmp_path: Path) -> None:
    with Gateway(tmp_path / "box", guarded.port, SECURE, host="localhost") as gateway:
        gateway.append(20)
        assert wait_for(lambda: "enroll" in " ".join(gateway.said))


# --- helpers ------------------------------------------------------------------------------------------------------


@contextmanager
def telemetry(port: int) -> Iterator[list[list[Any]]]:
    """All that a ThingsBoard would be told, decoded by the standard library."""
    import paho.mqtt.client as mqtt
    from paho.mqtt.enums import CallbackAPIVersion

    told: list[list[Any]] = []
    ready = threading.Event()
    client = mqtt.Client(CallbackAPIVersion.VERSION2, "thingsboard", protocol=mqtt.MQTTv5)
    client.on_connect = lambda client, *_: client.subscribe("v1/#", 1)
    client.on_subscribe = lambda *_: ready.set()
    client.on_message = lambda _client, _data, message: told.append([message.topic, json.loads(message.payload)])
    client.connect("127.0.0.1", port)
    client.loop_start()
    assert ready.wait(5)
    try:
        yield told
    finally:
        client.disconnect()
        client.loop_stop()


def numbers(told: list[list[Any]]) -> list[int]:
    return [
        entry["values"]["tag_seq"]
        for topic, said in list(told)
        if topic == "v1/gateway/telemetry"
        for entry in said["tag-7"]
    ]
