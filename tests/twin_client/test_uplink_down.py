"""What the twin says, through a real broker: it reaches the gateway once it can, and none of it is lost on the way."""

import time
from pathlib import Path

import pytest
from linked import Gateway, stamp, wait_for
from receiver import Receiver

from benchmarks.loss.broker import Broker
from benchmarks.loss.link import Link
from twin_client.protocol import orders


def test_commands_sent_while_it_was_away_come_when_it_is_back(broker: Broker, twin: Receiver, tmp_path: Path) -> None:
    command = orders.Command(1, "gw-1", "c-1", "ann", 1, 2, "send_diagnostics")
    desired = orders.Desired(1, "gw-1", 3, {})
    with Gateway(tmp_path / "box", broker.port) as gateway:
        assert wait_for(lambda: gateway.uplink.up)
    twin.command(command)
    twin.say("mine/gw-1/command", b"rubbish")
    twin.say("mine/gw-1/desired", orders.pack(desired), retain=True)
    with Gateway(tmp_path / "box", broker.port) as gateway:
        assert wait_for(lambda: command in gateway.heard and desired in gateway.heard), gateway.heard
        assert gateway.uplink.counters["not understood"] == 1
        answer = orders.Answer(1, "gw-1", "c-1", "done", "fine", stamp())
        assert gateway.tell(gateway.uplink.speaker.answer(answer))
    assert gateway.heard.count(command) == 1
    assert twin.until(lambda it: ("mine/gw-1/answer", orders.pack(answer)) in it.said)


@pytest.mark.parametrize("cut", [True, False])
def test_a_command_is_the_broker_s_until_it_is_kept(broker: Broker, twin: Receiver, tmp_path: Path, cut: bool) -> None:
    command = orders.Command(1, "gw-1", "c-1", "ann", 1, 2, "send_diagnostics")
    with Link(broker.port) as link, Gateway(tmp_path / "box", link.port) as gateway:

        def first_time(said: object) -> None:
            gateway.heard.append(said)
            if cut and len(gateway.heard) == 1:
                time.sleep(0.3)  # an acknowledgement that was sent before would be through by now
                link.stall()
                link.cut()
                link.flow()
                time.sleep(0.3)

        gateway.uplink._heard = first_time
        assert wait_for(lambda: gateway.uplink.up)
        twin.command(command)
        assert wait_for(lambda: len(gateway.heard) == 1 + cut), "what a cut took with it is heard again"
        time.sleep(0.5)
    assert gateway.heard == [command] * (1 + cut)


def test_a_mistake_of_ours_in_a_command_neither_ends_the_link_nor_repeats(
    broker: Broker, twin: Receiver, tmp_path: Path
) -> None:
    command = orders.Command(1, "gw-1", "c-1", "ann", 1, 2, "send_diagnostics")
    tries = []
    with Gateway(tmp_path / "box", broker.port) as gateway:

        def mistaken(said: object) -> None:
            tries.append(said)
            raise KeyError("oops")

        gateway.uplink._heard = mistaken
        assert wait_for(lambda: gateway.uplink.up)
        twin.command(command)
        assert wait_for(lambda: tries)
        gateway.append(10)
        assert gateway.emptied()
        assert gateway.uplink.counters["connections"] == 1
    assert tries == [command]
    assert "command cannot be taken: KeyError: 'oops'" in gateway.said
