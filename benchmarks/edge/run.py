"""Figure 6: every network, link and setting measured on real hosts, or modelled where there are none; never mixed."""

import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import torch

from benchmarks.edge import model
from benchmarks.edge.crew import Crew
from benchmarks.edge.hosts import CLOUD, CONGESTION, Hosts, check
from benchmarks.edge.jobs import NETWORKS, Job, Learning, answerer, learner, packed, scene_files, slices, weights_of
from benchmarks.edge.model import MINE, PAPER, Link, Work
from targets.runtime.errors import HighwallError
from targets.runtime.files import write_text
from targets.runtime.machine import Busy, look, this_machine

RESULTS: Final = Path(__file__).parents[1] / "results" / "edge"
SCHEMA: Final = 1
LINKS: Final = (PAPER, MINE)
TASKS: Final = ("predict", "train")
SETTINGS: Final[tuple[Literal["cloud", "edge"], ...]] = ("cloud", "edge")
EDGES: Final = 2
HOSTS: Final = 1 + EDGES
SPARE: Final = 0.9  # of all cores, what the hosts' quotas add up to
NOISY_CORES: Final = 0.1  # used by others while a cell was measured, from which it is marked
TOLERANCE: Final = 1e-6  # of the largest weight: summing gradients in another order changes less, a step far more
PROBE_BYTES: Final = {PAPER.name: 50_000_000, MINE.name: 500_000}
Say = Callable[[str], None]


def quota() -> float:
    """Cores each host gets where nobody says how many: alike, and together less than there are."""
    return round((os.cpu_count() or 1) * SPARE / HOSTS, 3)


@dataclass(frozen=True)
class Plan:
    """How much: scenes of `side` pixels a site, training steps of `batch` slices a host, and repeats of each pair.

    cores: the quota of each host. Raises HighwallError where there are not as many.
    """

    networks: tuple[str, ...] = NETWORKS
    scenes: int = 2
    side: int = 448
    steps: int = 3
    batch: int = 8
    repeats: int = 3
    cores: float = field(default_factory=quota)

    def __post_init__(self) -> None:
        most = (os.cpu_count() or 1) / HOSTS
        if not 0.01 <= self.cores <= most:
            raise HighwallError(f"{HOSTS} hosts here get 0.01 to {most:.2f} cores each, not {self.cores:g}")


QUICK: Final = Plan(("ours", "rnn"), scenes=1, side=96, steps=1, batch=2, repeats=1)


def run(plan: Plan, path: Path, command: str, say: Say) -> dict[str, Any]:
    """Measure what `path` does not hold already, and write it there after every cell.

    Raises HighwallError where this machine cannot make hosts, saying what it lacks, or a host fails.
    """
    check()
    result = _kept(path, _head(plan, command, "measured"), say)
    for link in LINKS:
        missing = [cell for cell in _cells(plan, link) if cell[0] not in result["cells"]]
        if not missing:
            continue
        say(f"{link.name}: starting {HOSTS} hosts of {plan.cores:g} cores")
        with Hosts(link, plan.cores) as hosts, Crew(hosts) as crew:
            result["probes"][link.name] = _probe(crew, link)
            for key, task, network, repeat in missing:
                cell = _measured(crew, plan, link, task, network, repeat)
                result["cells"][key] = cell
                _write(path, result)
                off = model.reduction(cell["cloud"]["seconds"], cell["edge"]["seconds"])
                words = "cloud {:.3g} s, edge {:.3g} s".format(*(cell[setting]["seconds"] for setting in SETTINGS))
                marks = f"{', noisy' * cell['noisy']}{', NOT EQUAL' * (not cell['equal']['equal'])}"
                say(f"{key}: {words}, {off:.1f} % off{marks}")
            ways = [way for proxy in hosts.proxies for way in proxy.ways]
            result["probes"][link.name] |= {
                "packets_offered": sum(way.offered for way in ways),
                "packets_lost": sum(way.lost for way in ways),
            }
    result["comparison"] = _comparison(result["cells"])
    _write(path, result)
    return result


def modelled(plan: Plan, path: Path, command: str, say: Say) -> dict[str, Any]:
    """The same from the stated model: this machine's compute times on one thread over the quota, and real sizes."""
    torch.set_num_threads(1)
    result = _head(plan, command, "modelled")
    for network in plan.networks:
        for task in TASKS:
            say(f"{task} {network}: timing one host's share")
            work = _work_here(plan, task, network)
            for link in LINKS:
                cell = {"task": task, "network": network, "link": link.name, "repeat": 0, "kind": "modelled"}
                sides = _sides(task, work, link, plan.cores)
                result["cells"][f"{task}-{network}-{link.name}"] = cell | {"work": asdict(work)} | sides
    _write(path, result)
    return result


def _head(plan: Plan, command: str, kind: str) -> dict[str, Any]:
    """All of a result but what was found."""
    machine = asdict(this_machine())
    machine["packages"]["torch"] = torch.__version__
    return {
        "schema": SCHEMA,
        "kind": kind,
        "command": command,
        "plan": json.loads(json.dumps(asdict(plan))),
        "links": [asdict(link) for link in LINKS],
        "hosts": HOSTS,
        "congestion_control": CONGESTION,
        "energy": {"core_w": model.CORE_W, "radio_j_per_bit": model.RADIO_J_PER_BIT, "kind": "estimated"},
        "machine": machine,
        "probes": {},
        "cells": {},
    }


def _kept(path: Path, head: dict[str, Any], say: Say) -> dict[str, Any]:
    """The result of an earlier run of the same plan on the same machine, else an empty one."""
    if not path.exists():
        return head
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        same = all(found[key] == head[key] for key in head if key not in ("probes", "cells"))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise HighwallError(f"{path} is no result of this benchmark ({error}); move it away") from error
    if not same:
        say(f"{path} is of another plan, machine or version; it is replaced")
    return found if same else head


def _cells(plan: Plan, link: Link) -> Iterator[tuple[str, str, str, int]]:
    for repeat in range(plan.repeats):
        for task in TASKS:
            for network in plan.networks:
                yield f"{task}-{network}-{link.name}-{repeat}", task, network, repeat


def _write(path: Path, result: dict[str, Any]) -> None:
    write_text(path, json.dumps(result, indent=1) + "\n")


def _probe(crew: Crew, link: Link) -> dict[str, Any]:
    """What the link turns out to do, by TCP and from Python: the round trip, and bytes in bulk."""
    found = crew.do(Job("probe", "", "cloud", PROBE_BYTES[link.name]))[1]
    return {"rtt_ms": round(1e3 * found["rtt_s"], 3), "mbit_per_s": round(found["bits_per_s"] / 1e6, 3)}


def _measured(crew: Crew, plan: Plan, link: Link, task: str, network: str, repeat: int) -> dict[str, Any]:
    """Both settings, one after the other; every second repeat begins with the edge."""
    cell: dict[str, Any] = {"task": task, "network": network, "link": link.name, "repeat": repeat, "kind": "measured"}
    found: dict[str, list[dict[str, Any]]] = {}
    others = []
    units = plan.scenes if task == "predict" else plan.steps
    for setting in SETTINGS[:: -1 if repeat % 2 else 1]:
        file = str(crew.folder / f"{setting}.npy")
        busy = Busy()
        job = Job(task, network, setting, units, plan.side, plan.batch, HOSTS, file)  # type: ignore[arg-type]
        found[setting] = crew.do(job)
        others.append(busy.others(sum(host["whole_cpu_s"] for host in found[setting])))
        cell[setting] = _side(task, setting, found[setting])
    cell["work"] = asdict(_work(task, plan, network, found))
    cell["equal"] = _answers_equal(found) if task == "predict" else _weights_equal(found, crew.folder)
    known = [one for one in others if one is not None]
    cell["others_cores"] = max(known, default=None)
    cell["load"] = look().load
    cell["noisy"] = not known or max(known) > NOISY_CORES
    return cell


def _side(task: str, setting: str, found: list[dict[str, Any]]) -> dict[str, Any]:
    """One setting of a cell: from the first host's begin to the last answer at the cloud, or the last host's step."""
    first = found[1:] if task == "predict" else found
    last = found if (task, setting) == ("train", "edge") else found[:1]
    cpu, sent = sum(host["cpu_s"] for host in found), sum(host["sent_bytes"] for host in found)
    return {
        "seconds": round(max(host["ended"] for host in last) - min(host["began"] for host in first), 4),
        "sent_bytes": sent,
        "cpu_s": [host["cpu_s"] for host in found],
        "estimated_j": round(model.energy_j(cpu, sent), 4),
    }


def _work(task: str, plan: Plan, network: str, found: dict[str, list[dict[str, Any]]]) -> Work:
    """What the model is asked with: how long a unit took the cloud, and the sizes."""
    cloud = found["cloud"]
    unit_s = sum(cloud[CLOUD]["unit_s"]) / len(cloud[CLOUD]["unit_s"])
    file_bytes = sum(host["file_bytes"] for host in cloud[1:]) / EDGES
    if task == "train":
        gradient = 4 * len(weights_of(learner(network)))
        return Work(plan.steps, unit_s / HOSTS, file_bytes / plan.steps, gradient_bytes=gradient)
    said = [len(json.dumps(answer)) for answer in cloud[CLOUD]["answers"].values()]
    return Work(plan.scenes, unit_s, file_bytes / plan.scenes, answer_bytes=sum(said) / len(said))


def _work_here(plan: Plan, task: str, network: str) -> Work:
    """The same without hosts: timed here on one thread, as long over the quota as the quota is short of a core."""
    if task == "predict":
        answer, files = answerer(network, plan.side), scene_files(plan.scenes, plan.side, 1)
        began = time.thread_time()
        said = [len(json.dumps(answer(file))) for file in files]
        unit_s = (time.thread_time() - began) / len(files) / plan.cores
        return Work(plan.scenes, unit_s, sum(map(len, files)) / len(files), sum(said) / len(said))
    images, labels = (part[:, 1] for part in slices(plan.steps, plan.batch, HOSTS))
    sent = sum(map(len, packed(images.reshape(-1, *images.shape[2:]), labels.reshape(-1))))
    made = learner(network)
    learning = Learning(made)
    learning.step(images[0], labels[0])  # the first one is a slow one
    began = time.thread_time()
    for step in range(plan.steps):
        learning.step(images[step], labels[step])
    unit_s = (time.thread_time() - began) / plan.steps / plan.cores
    return Work(plan.steps, unit_s, sent / plan.steps, gradient_bytes=4 * len(weights_of(made)))


def _answers_equal(found: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    cloud, edge = (found[setting][CLOUD]["answers"] for setting in SETTINGS)
    detections = sum(len(answer["boxes"]) for answer in cloud.values())
    return {"equal": cloud == edge, "scenes": len(cloud), "detections": detections}


def _weights_equal(found: dict[str, list[dict[str, Any]]], folder: Path) -> dict[str, Any]:
    """Trained alone and trained together: weights within TOLERANCE, one accuracy, and hosts that agree to the bit."""
    alone, together = (np.load(folder / f"{setting}.npy") for setting in SETTINGS)
    off = float(np.abs(alone - together).max() / np.abs(alone).max())
    judged = [{key: found[setting][CLOUD][key] for key in ("loss", "accuracy")} for setting in SETTINGS]
    agreed = len({host["weights"] for host in found["edge"]}) == 1
    equal = off <= TOLERANCE and agreed and judged[0]["accuracy"] == judged[1]["accuracy"]
    return {"equal": equal, "weights_off": off, "hosts_agree": agreed, "cloud": judged[0], "edge": judged[1]}


def _seconds(task: str, work: Work, link: Link) -> dict[str, float]:
    """By the model, for each setting."""
    if task == "predict":
        return {"cloud": model.predict_cloud_s(work, link, EDGES), "edge": model.predict_edge_s(work, link)}
    return {"cloud": model.train_cloud_s(work, link, HOSTS), "edge": model.train_edge_s(work, link, HOSTS)}


def _sides(task: str, work: Work, link: Link, cores: float) -> dict[str, Any]:
    """Both settings of a modelled cell; answers go back over the link as they do on real hosts."""
    computing = work.units * work.unit_s * cores * (EDGES if task == "predict" else HOSTS)
    ring = 2 * (HOSTS - 1) / HOSTS * work.gradient_bytes * (HOSTS + 1)  # one hop of three crosses two links
    per_site = {"cloud": work.sent_bytes + work.answer_bytes, "edge": work.answer_bytes}
    sides = {}
    for setting, seconds in _seconds(task, work, link).items():
        payload = work.units * (ring if (task, setting) == ("train", "edge") else EDGES * per_site[setting])
        sent = model.wire_bytes(payload, link.loss)
        sides[setting] = {
            "seconds": round(seconds, 4),
            "sent_bytes": round(sent),
            "estimated_j": round(model.energy_j(computing, sent), 4),
        }
    return sides


def _comparison(cells: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """The model beside each measurement; it is given the cloud's own compute times, so it is judged on the rest."""
    links = {link.name: link for link in LINKS}
    rows = []
    for key, cell in cells.items():
        by_model = _seconds(cell["task"], Work(**cell["work"]), links[cell["link"]])
        for setting in SETTINGS:
            seconds = {"measured_s": cell[setting]["seconds"], "modelled_s": round(by_model[setting], 4)}
            rows.append({"cell": key, "setting": setting} | seconds)
    return rows
