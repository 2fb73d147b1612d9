"""The stated model of figure 6: seconds, bytes and joules from compute times and a link, without any I/O.

A link's throughput is the smaller of its bandwidth and what TCP makes of its loss (Mathis et al. 1997, equation 3);
compute times are inputs. Every edge has a link of its own to the cloud, and edges reach each other through it.
It knows no retransmission timeouts: of training over a lossy link it gives about a third of the measured seconds.
"""

import math
from dataclasses import dataclass
from typing import Final

SEGMENT: Final = 1448  # bytes of payload in a full TCP segment with timestamps on a 1500-byte MTU
PACKET: Final = 1500
FIRST_WINDOW: Final = 10  # segments a connection sends before it hears anything (RFC 6928)
MATHIS: Final = math.sqrt(3 / 2)
# A Raspberry Pi 4B idles at 2.7 W and draws 6.4 W with four cores busy (J. Geerling's Pi Dramble wiki, power
# consumption benchmarks); what one busy core adds is a quarter of the difference.
CORE_W: Final = (6.4 - 2.7) / 4
# Wi-Fi, 0.007 J/KB (Balasubramanian et al., "Energy consumption in mobile phones", IMC 2009).
RADIO_J_PER_BIT: Final = 0.007 / 8192


@dataclass(frozen=True)
class Link:
    """Both ways alike. bits_per_s: of IP packets; rtt_s: there and back; loss: share of the packets lost each way."""

    name: str
    bits_per_s: float
    rtt_s: float = 0.0
    loss: float = 0.0

    def __post_init__(self) -> None:
        if not self.bits_per_s > 0 or self.rtt_s < 0 or not 0 <= self.loss < 1:
            raise ValueError(f"no link has {self.bits_per_s} bit/s, {self.rtt_s} s and a loss of {self.loss}")


PAPER: Final = Link("paper", 8e9)
MINE: Final = Link("mine", 10e6, rtt_s=0.1, loss=0.02)


@dataclass(frozen=True)
class Work:
    """What a job asks for. Seconds are on one host at its quota; bytes are payload.

    units: scenes of one edge site, or training steps; sent_bytes: of one scene's file, or of one site's share of one
    step's samples; answer_bytes: of one scene's answer; gradient_bytes: of the whole gradient (0 to predict).
    unit_s: to predict one scene, or for one host's share of a step.
    """

    units: int
    unit_s: float
    sent_bytes: float
    answer_bytes: float = 0.0
    gradient_bytes: float = 0.0


def segments(payload: float) -> int:
    """How many TCP segments carry `payload` bytes."""
    return math.ceil(payload / SEGMENT)


def retransmitted(payload: float, loss: float) -> float:
    """Segments expected to be sent again: each is sent 1 / (1 - loss) times."""
    return segments(payload) * loss / (1 - loss)


def wire_bytes(payload: float, loss: float = 0.0) -> float:
    """Bytes of IP packets that carry `payload`, headers and retransmissions with them; no acknowledgements."""
    count = segments(payload)
    return payload + count * (PACKET - SEGMENT) + retransmitted(payload, loss) * PACKET


def throughput(link: Link) -> float:
    """Payload in bits per second that one long TCP connection gets."""
    most = link.bits_per_s * SEGMENT / PACKET * (1 - link.loss)
    hold = link.rtt_s * math.sqrt(link.loss)
    return min(most, SEGMENT * 8 * MATHIS / hold) if hold else most


def transfer_s(payload: float, link: Link) -> float:
    """Seconds from the first byte sent to the last one there, on an open connection that was idle."""
    if payload <= 0:
        return 0.0
    window, waiting, left = float(FIRST_WINDOW * SEGMENT), 0.0, payload
    pipe = throughput(link) * link.rtt_s / 8
    while left > window and window < pipe:  # slow start: a window a round trip, each twice the last
        waiting, left, window = waiting + link.rtt_s, left - window, 2 * window
    # What fits in a window goes at the link's own speed; loss slows what must wait for acknowledgements.
    rate = link.bits_per_s * SEGMENT / PACKET if left <= window else throughput(link)
    return waiting + left * 8 / rate + link.rtt_s / 2


def allreduce_s(payload: float, link: Link, hosts: int) -> float:
    """Seconds of one ring all-reduce of `payload` bytes; its slowest hop crosses two links, edge to edge."""
    if hosts < 2 or payload <= 0:
        return 0.0
    rounds = 2 * (hosts - 1)
    return rounds * (transfer_s(payload / hosts, link) + link.rtt_s / 2)


def predict_cloud_s(work: Work, link: Link, edges: int = 2) -> float:
    """Seconds from the capture of all scenes to the last answer, when the cloud predicts them as their files come."""
    done = 0.0
    for scene in range(work.units):
        arrived = transfer_s(work.sent_bytes * (scene + 1), link)
        done = max(done, arrived) + edges * work.unit_s
    return done


def predict_edge_s(work: Work, link: Link) -> float:
    """The same when every edge predicts its own scenes and sends only the answers, the last of which counts."""
    return work.units * work.unit_s + transfer_s(work.answer_bytes, link)


def train_cloud_s(work: Work, link: Link, hosts: int = 3) -> float:
    """Seconds until the cloud has every site's samples, and then trained on all of each step's `hosts` shares."""
    return transfer_s(work.units * work.sent_bytes, link) + work.units * hosts * work.unit_s


def train_edge_s(work: Work, link: Link, hosts: int = 3) -> float:
    """The same data-parallel: every host computes its share of each step, then gradients are averaged."""
    return work.units * (work.unit_s + allreduce_s(work.gradient_bytes, link, hosts))


def energy_j(busy_s: float, sent_bytes: float) -> float:
    """Estimated joules above idle: CPU seconds as if each were a Pi 4B core's, and bytes as if sent by Wi-Fi."""
    return busy_s * CORE_W + sent_bytes * 8 * RADIO_J_PER_BIT


def reduction(cloud_s: float, edge_s: float) -> float:
    """How many per cent of the cloud's time the edge takes off; negative where it is slower."""
    return 100 * (1 - edge_s / cloud_s)


def implied_speeds(percent: float, edges: int = 2) -> tuple[float, float]:
    """How many times one edge the cloud must compute for `percent` off prediction, and off training; links free.

    Prediction: edges do all the work, 1 - cloud / edges. Training: they join the cloud, edges / (cloud + edges).
    """
    share = percent / 100
    return edges * (1 - share), edges * (1 - share) / share
