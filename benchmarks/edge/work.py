"""A host's process, one rank of torchrun: it does the jobs that its control socket names, beside its peers.

Data crosses the links over one open TCP connection an edge, gradients over gloo's own. Control is a Unix socket,
which no namespace shapes. Times are of CLOCK_MONOTONIC, one for all namespaces of a machine.
"""

import json
import os
import queue
import socket
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from benchmarks.edge import frames
from benchmarks.edge.hosts import CLOUD
from benchmarks.edge.jobs import Job, Learning, answerer, judged, learner, packed, scene_files, slices, unpacked
from benchmarks.edge.jobs import weights_of as weights
from targets.runtime.errors import HighwallError

CONTROL: Final = "HIGHWALL_EDGE_CONTROL"  # the Unix socket's path
PORT: Final = 29511
PINGS: Final = 5
PATIENCE_S: Final = 300.0
Go = Callable[[], None]
Found = dict[str, Any]


class Worker:
    """One host. At the cloud `peers` are the edges' connections by rank, at an edge only the cloud's."""

    def __init__(self, rank: int, peers: dict[int, socket.socket]) -> None:
        self.rank, self.peers = rank, peers
        self._began = 0.0
        self._cpu = 0.0
        self._sent = 0

    def do(self, job: Job, ready: Go) -> Found:
        """Prepare, call `ready`, which returns when every host is, and do the job."""
        found: Found = {"predict": self._predict, "train": self._train, "probe": self._probe}[job.task](job, ready)
        return found

    def _begin(self, ready: Go) -> None:
        ready()
        self._sent, self._cpu, self._began = sent_bytes(), time.process_time(), time.monotonic()

    def _end(self, ended: float | None = None, **found: Any) -> Found:
        """What it took: `ended` is the last answer's or step's time, where that is not now."""
        return {
            "began": self._began,
            "ended": time.monotonic() if ended is None else ended,
            "cpu_s": round(time.process_time() - self._cpu, 4),
            "sent_bytes": sent_bytes() - self._sent,
            **found,
        }

    def _predict(self, job: Job, ready: Go) -> Found:
        at_cloud = job.setting == "cloud"
        answer = answerer(job.network, job.side) if (self.rank == CLOUD) == at_cloud else None
        if self.rank != CLOUD:
            return self._capture(job, ready, answer)
        self._begin(ready)
        incoming = self._incoming(job.units)
        seconds: list[float] = []
        answers = {}
        for _ in range(job.units * len(self.peers)):
            peer, scene, payload = incoming.get(timeout=PATIENCE_S)
            if answer is None:
                said, reply = json.loads(payload), b""
            else:
                began = time.monotonic()
                said = answer(payload)
                seconds.append(time.monotonic() - began)
                reply = json.dumps(said).encode()
            ended = time.monotonic()
            answers[f"{peer}.{scene}"] = said
            frames.send(self.peers[peer], reply)
        return self._end(ended, unit_s=seconds, answers=dict(sorted(answers.items())))

    def _capture(self, job: Job, ready: Go, answer: Callable[[bytes], Found] | None) -> Found:
        files = scene_files(job.units, job.side, self.rank)
        cloud = self.peers[CLOUD]
        self._begin(ready)
        seconds = []
        for file in files:
            began = time.monotonic()
            payload = file if answer is None else json.dumps(answer(file)).encode()
            seconds += [] if answer is None else [time.monotonic() - began]
            frames.send(cloud, payload)
        for _ in files:
            frames.receive(cloud)
        return self._end(unit_s=seconds, file_bytes=sum(map(len, files)))

    def _train(self, job: Job, ready: Go) -> Found:
        images, labels = slices(job.units, job.batch, job.hosts)
        network = learner(job.network)
        # The first step of a process is a slow one; this one's learner is thrown away.
        first = slice(None) if job.setting == "cloud" else slice(1)
        Learning(learner(job.network)).step(*(part[0, first].reshape(-1, *part.shape[3:]) for part in (images, labels)))
        if job.setting == "edge":
            found = self._train_together(job, network, images[:, self.rank], labels[:, self.rank], ready)
        elif self.rank != CLOUD:
            mine = (part[:, self.rank].reshape(-1, *part.shape[3:]) for part in (images, labels))
            files = packed(*mine)
            self._begin(ready)
            for file in files:
                frames.send(self.peers[CLOUD], file)
            frames.receive(self.peers[CLOUD])
            return self._end(file_bytes=sum(map(len, files)))
        else:
            found = self._train_alone(job, network, images[:, CLOUD], labels[:, CLOUD], ready)
        if self.rank == CLOUD:
            np.save(job.weights, weights(network))
        return found | judged(network) | {"weights": sha256(weights(network).tobytes()).hexdigest()}

    def _train_alone(self, job: Job, network: torch.nn.Module, images: Any, labels: Any, ready: Go) -> Found:
        learning = Learning(network)
        self._begin(ready)
        count = job.units * job.batch
        incoming = self._incoming(count)
        files: dict[int, list[bytes]] = {peer: [] for peer in self.peers}
        for _ in range(count * len(self.peers)):
            peer, _, payload = incoming.get(timeout=PATIENCE_S)
            files[peer].append(payload)
        arrived = time.monotonic()
        shares = [(images, labels)]
        for peer in sorted(files):
            pixels, truth = unpacked(files[peer])
            shares.append((pixels.reshape(images.shape), truth.reshape(labels.shape)))
        seconds = []
        for step in range(job.units):
            began = time.monotonic()
            learning.step(*(np.concatenate([share[part][step] for share in shares]) for part in (0, 1)))
            seconds.append(time.monotonic() - began)
        ended = time.monotonic()
        for connection in self.peers.values():
            frames.send(connection, b"")
        return self._end(ended, unit_s=seconds, arrived_s=arrived - self._began)

    def _train_together(self, job: Job, network: torch.nn.Module, images: Any, labels: Any, ready: Go) -> Found:
        # Every host made the same weights, so none need be sent.
        learning = Learning(DistributedDataParallel(network, init_sync=False))
        self._begin(ready)
        seconds = []
        for step in range(job.units):
            began = time.monotonic()
            learning.step(images[step], labels[step])
            seconds.append(time.monotonic() - began)
        return self._end(step_s=seconds)

    def _probe(self, job: Job, ready: Go) -> Found:
        """Round trips of an empty frame, and `job.units` bytes at once from the first edge."""
        self._begin(ready)
        if self.rank == CLOUD:
            for _ in range(PINGS + 1):
                frames.receive(self.peers[1])
                frames.send(self.peers[1], b"")
        elif self.rank == 1:
            seconds = []
            for payload in [b""] * PINGS + [bytes(job.units)]:
                began = time.monotonic()
                frames.send(self.peers[CLOUD], payload)
                frames.receive(self.peers[CLOUD])
                seconds.append(time.monotonic() - began)
            trip = sorted(seconds[:-1])[PINGS // 2]
            return self._end(rtt_s=trip, bits_per_s=job.units * 8 / seconds[-1])
        return self._end()

    def _incoming(self, count: int) -> "queue.Queue[tuple[int, int, bytes]]":
        """`count` frames of each peer as they come, with the peer's rank and their number."""
        incoming: queue.Queue[tuple[int, int, bytes]] = queue.Queue()

        def listen(peer: int, connection: socket.socket) -> None:
            for number in range(count):
                incoming.put((peer, number, frames.receive(connection)))

        for peer, connection in self.peers.items():
            threading.Thread(target=listen, args=(peer, connection), daemon=True).start()
        return incoming


def sent_bytes() -> int:
    """Bytes that this namespace's links have sent, headers too; not its loopback's (/proc/net/dev, proc_net(5))."""
    rows = [line.partition(":") for line in Path("/proc/net/dev").read_text(encoding="utf-8").splitlines()[2:]]
    return sum(int(counts.split()[8]) for name, _, counts in rows if name.strip() != "lo")


def join(rank: int, hosts: int, address: str) -> dict[int, socket.socket]:
    """The data connections of a host: the cloud takes its edges' in, an edge calls the cloud at `address`."""
    if rank != CLOUD:
        connection = _called(address)
        frames.send_json(connection, {"rank": rank})
        return {CLOUD: connection}
    peers: dict[int, socket.socket] = {}
    with socket.create_server(("", PORT)) as server:
        server.settimeout(PATIENCE_S)
        while len(peers) < hosts - 1:
            connection, _ = server.accept()
            connection.settimeout(PATIENCE_S)
            peers[int(frames.receive_json(connection)["rank"])] = connection
    for connection in peers.values():
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return peers


def _called(address: str) -> socket.socket:
    until = time.monotonic() + PATIENCE_S
    while True:
        try:
            connection = socket.create_connection((address, PORT), timeout=PATIENCE_S)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return connection
        except OSError:
            if time.monotonic() > until:
                raise
            time.sleep(0.2)


def main() -> None:
    """Join the peers and do jobs until the control socket closes, which ends this process wherever it is."""
    torch.set_num_threads(1)
    rank, hosts = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    control = socket.socket(socket.AF_UNIX)
    control.connect(os.environ[CONTROL])
    words: queue.Queue[dict[str, Any]] = queue.Queue()

    def listen() -> None:
        try:
            while True:
                words.put(frames.receive_json(control))
        except (HighwallError, OSError):
            os._exit(0)

    threading.Thread(target=listen, daemon=True).start()
    dist.init_process_group("gloo", timeout=timedelta(seconds=PATIENCE_S))
    worker = Worker(rank, join(rank, hosts, os.environ["MASTER_ADDR"]))
    frames.send_json(control, {"rank": rank})

    def ready() -> None:
        frames.send_json(control, {"ready": rank})
        words.get()

    while True:
        job = Job(**words.get())
        before = time.process_time()
        found = worker.do(job, ready)
        frames.send_json(control, found | {"whole_cpu_s": time.process_time() - before})


if __name__ == "__main__":
    main()
