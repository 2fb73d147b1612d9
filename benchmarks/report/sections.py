"""What the page says, section by section, from the JSON under results/ alone."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.edge import table as edge_table
from benchmarks.edge.model import reduction
from benchmarks.loss.table import table as loss_table
from benchmarks.peers import table as peers_table
from benchmarks.report import plots
from benchmarks.report.tables import Table, parse
from benchmarks.suite import table as suite_table
from benchmarks.suite.field import fingerprint
from benchmarks.suite.run import read as read_suite
from targets.runtime.errors import HighwallError


@dataclass
class Section:
    """One chapter of the page. figures: numbers by name, to be compared with the last report's."""

    name: str
    title: str
    text: str
    commands: tuple[str, ...]
    tables: list[Table] = field(default_factory=list)
    # Caption, and what draws the SVG: drawing takes seconds, and only the page shows it.
    pictures: list[tuple[str, Callable[[], str]]] = field(default_factory=list)
    figures: dict[str, float] = field(default_factory=dict)
    machine: str = ""
    points: tuple[str, ...] = ()

    def date(self, result: Mapping[str, Any]) -> None:
        """Say so where what `result` measured is another thing by now."""
        if (why := outdated(result)) and why not in self.text:
            self.text = f"{why} {self.text}"


def outdated(result: Mapping[str, Any]) -> str:
    """Why a result's figures no longer stand, empty where they do.

    The field of networks is known by its fingerprint. What else may change says so in `superseded`, a sentence written
    into the result's file by whoever changed it; measuring again writes a new file without it.
    """
    if result.get("field", fingerprint()) != fingerprint():
        return "The networks have changed since this was measured; the command below measures it anew."
    return str(result.get("superseded", ""))


def cost(folder: Path) -> Section | None:
    """What networks cost on paper, counted twice."""
    found = load(folder / "cost" / "cost.json")
    if found is None:
        return None
    made = Section(
        "cost",
        "Cost",
        "A MAC is one multiply-accumulate of a convolution, linear or recurrent layer. Every count here was made "
        "twice, by hooks on the layers and by torch's FlopCounterMode; of recurrent layers by hooks alone. Generic and "
        "separable are what equations 2 and 3 give for the kernels, maps and channels of every square convolution: "
        "what ours would cost generic, and what others would cost separable.",
        (found["command"],),
    )
    by_size: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for one in found["networks"]:
        by_size.setdefault((one["task"], one["size"]), []).append(one)
    for task, size in (("classify", 48), ("segment", 448), ("detect", 300)):
        ones = sorted((one for one in by_size.get((task, size), []) if "macs" in one), key=lambda one: one["macs"])
        rows, marked = [], set()
        for at, one in enumerate(ones):
            agree = "recurrent" if one["torch_macs"] is None else "yes" if one["torch_macs"] == one["macs"] else "NO"
            marked |= {at} if one["network"] == "cracknet" else set()
            rows.append(
                (
                    one["title"],
                    f"{one['parameters'] / 1e6:,.2f}",
                    f"{one['macs'] / 1e6:,.1f}",
                    agree,
                    f"{one['generic_macs'] / 1e6:,.1f}",
                    f"{one['separable_macs'] / 1e6:,.1f}",
                    f"{one['activation_bytes'] / 2**20:,.1f}",
                    f"{one['intensity']['fp32']:.2f}",
                    f"{one['intensity']['int8']:.2f}",
                )
            )
            made.figures[f"{one['title']} {task} {size}: M MAC"] = round(one["macs"] / 1e6, 1)
        head = (
            "network",
            "parameters, M",
            "MAC, M",
            "torch agrees",
            "generic, M",
            "separable, M",
            "activations, MiB",
            "MAC a byte, fp32",
            "int8",
        )
        if rows:
            made.tables.append(Table(f"{task}, {size} x {size}", "counted", head, tuple(rows), frozenset(marked)))
    as_published = tuple(
        (
            one["title"],
            f"{one['parameters']:,}",
            "yes" if one["parameters"] == one["published_parameters"] else "NO",
            f"{one['gmacs']:.2f}",
            f"{one['published_gmacs']:.2f}",
        )
        for one in found["published"].values()
    )
    columns = ("network", "parameters", "as published", "GMAC here", "GMAC published")
    made.tables.append(Table("As published: 224 x 224, 1000 classes", "counted", columns, as_published))
    made.pictures.append(
        (
            "Equations 2 and 3: what a separable convolution saves. Dotted: the limit, positions of the kernel.",
            partial(plots.saving, found["saving"]),
        )
    )
    return made


def latency(folder: Path) -> list[Section]:
    """A section for each machine that ran the suite."""
    found = []
    for path in sorted((folder / "suite").glob("*.json")):
        if not path.stem.endswith("-smoke"):
            found.append(_machine(path.stem, read_suite(path)))
    return found


def _processor(here: dict[str, Any]) -> str:
    """Its name and, where the result is young enough to say so, its vector instructions."""
    return f"{here['model']} ({here['vectors']})" if here.get("vectors") else str(here["model"])


def _machine(name: str, result: dict[str, Any]) -> Section:
    here = result["machine"]
    packages = ", ".join(f"{key} {value}" for key, value in here["packages"].items())
    made = Section(
        f"latency-{name}",
        f"Latency on {'this host' if name == 'host' else name}",
        "Every network in the same engine (ONNX Runtime, as a gateway opens it), each beside ours in one run, turn by "
        "turn, in processes of their own; p50 and p95 of single images, ratios with 95 % bootstrap intervals over "
        "turns. Weights are drawn, since no kernel looks at values. `first answer` counts from the start of the "
        "process, with Python and the engine's import; MiB is the peak beside them. `times ours` is against ours at "
        "the same size and precision, in our own int8 rows against our fp32, which runs alone; SSD300 stands beside "
        "our classifier at 48 x 48. Noisy marks a run in which others took the cores, or in which ours took another "
        "time than in most pairs, by more than a quarter.",
        (result["command"],),
        machine=f"{_processor(here)}, {here['cores']} cores, kernel {here['kernel']}, Python {here['python']}, "
        f"{packages}; {result['begun']}",
    )
    made.date(result)
    cells = [cell for cell in result["cells"].values() if "p50_ms" in cell]
    roofs = tuple(
        (count, f"{top['fp32_gmacs']:g}", f"{top['int8_gmacs']:g}", f"{top['gbytes']:g}")
        for count, top in result["roof"].items()
    )
    head = ("threads", "GMAC/s, fp32", "GMAC/s, int8", "GB/s of copies")
    made.tables.append(Table("The machine's roof", "measured", head, roofs))
    for task, size in (("classify", 48), ("segment", 448)):
        shown = [c for c in cells if (c["task"], c["size"]) == (task, size) and c["threads"] == 1]
        if len(shown) > 1:
            rows = [(_bar(cell), cell["p50_ms"], cell["network"] == "cracknet") for cell in shown]
            caption = f"{task}, {size} x {size}, one thread: ms an image"
            made.pictures.append((caption, partial(plots.bars, rows, "ms")))
    if "1" in result["roof"] and cells:
        shipped = (("classify", 48), ("segment", 448), ("detect", 300))
        placed = [c for c in cells if c["threads"] == 1 and (c["task"], c["size"]) in shipped]
        made.pictures.append(
            (
                "The roofline, one thread: the least time a network could take is set by the engine's best matrix "
                "product or by the memory; beside each name the pixels a side.",
                partial(plots.roofline, result["roof"]["1"], placed),
            )
        )
    lines = {
        f"{'ours' if network == 'cracknet' else 'U-Net'}, {precision}": sorted(
            (cell["size"], cell["p50_ms"])
            for cell in cells
            if (cell["network"], cell["precision"], cell["threads"], cell["task"]) == (network, precision, 1, "segment")
        )
        for network in ("cracknet", "unet")
        for precision in ("fp32", "int8")
    }
    if any(len(points) > 1 for points in lines.values()):
        made.pictures.append(
            (
                "Networks of pixels by image size, one thread",
                partial(plots.sizes, {k: v for k, v in lines.items() if v}),
            )
        )
    for task, size in sorted({(cell["task"], cell["size"]) for cell in result["cells"].values()}):
        ordered = suite_table.ordered(result, task, size)
        gaps = [one for one in result["absent"] if (one["task"], one["size"]) == (task, size)]
        note = "; ".join(f"not run: {gap['title']} at {gap['precision']}, {gap['reason']}" for gap in gaps)
        marked = frozenset(at for at, cell in enumerate(ordered) if cell["network"] == "cracknet")
        rows_of = tuple(tuple(suite_table.row(cell)) for cell in ordered)
        made.tables.append(Table(f"{task}, {size} x {size}", "measured", suite_table.HEAD, rows_of, marked, note))
    for cell in cells:
        if cell["threads"] == 1:
            named = f"{cell['title']} {cell['task']} {cell['size']} {cell['precision']}"
            made.figures[f"{name}: {named}: p50 ms"] = cell["p50_ms"]
    return made


def _bar(cell: Mapping[str, Any]) -> str:
    return f"{cell['title']}, {cell['precision']}{' (noisy)' if cell.get('noise') else ''}"


def instructions(folder: Path) -> Section | None:
    """The field in the emulator."""
    paths = sorted((folder / "instructions").glob("*.json"))
    if not paths:
        return None
    made = Section(
        "instructions",
        "On the board's instruction set",
        "Exact ARM instructions of one inference on one thread, in an emulator of the board's core. "
        "They repeat to the last digit on one machine, and are no time: an emulator has no caches and no clock. "
        "Every network is as our own exporter and quantizer write it; LiteRT is what the shipped contracts keep there.",
        (),
    )
    for path in paths:
        result = load(path)
        assert result is not None
        made.commands += (result["command"],)
        made.date(result)
        engine = result["engine"]
        ran = [cell for cell in result["cells"].values() if "instructions" in cell]
        for task, size in sorted({(cell["task"], cell["size"]) for cell in ran}):
            here = sorted(
                (cell for cell in ran if (cell["task"], cell["size"]) == (task, size)), key=lambda c: c["instructions"]
            )
            rows = tuple(
                (
                    cell["title"],
                    cell["precision"],
                    f"{cell['instructions'] / 1e6:,.2f}",
                    f"{cell['macs'] / cell['instructions']:.2f}",
                    f"{cell['loads'] / 1e6:,.2f}",
                    f"{cell['stores'] / 1e6:,.2f}",
                )
                for cell in here
            )
            head = ("network", "precision", "M instructions", "MACs each", "M loads", "M stores")
            marked = frozenset(at for at, cell in enumerate(here) if cell["network"] == "cracknet")
            title = f"{result['board']} ({result['cpu']}), {engine}, {task}, {size} x {size}"
            made.tables.append(Table(title, "emulated", head, rows, marked))
            if len(here) > 2:
                drawn = [
                    (_bar(cell | {"noise": []}), cell["instructions"] / 1e6, cell["network"] == "cracknet")
                    for cell in here
                ]
                draw = partial(plots.bars, drawn, "M instructions", plots.EMULATED)
                made.pictures.append((f"{title}: M instructions", draw))
        for cell in ran:
            what = f"{cell['title']} {cell['task']} {cell['size']} {cell['precision']}"
            key = f"{result['board']}, {engine}: {what}: M instructions"
            made.figures[key] = round(cell["instructions"] / 1e6, 2)
    return made


def peers(folder: Path) -> Section | None:
    """Other engines on the same network."""
    paths = sorted((folder / "peers").glob("*.json"))
    if not paths:
        return None
    made = Section(
        "peers",
        "Other engines on the same network",
        "Each engine converts the network itself, in its own environment and with its best documented settings, and "
        "runs beside the artifact that ships, turn by turn. AUC and F1 are of images that the weights of that day had "
        "seen, so they tell engines apart and nothing else; off torch is how far its probabilities are from the float "
        "network's.",
        ("python -m benchmarks.peers --data DIR", "python -m benchmarks.peers --list"),
    )
    for path in paths:
        result = peers_table.read_result(path)
        made.date(result)
        cells = [cell for cell in peers_table.ordered(result) if "p50_ms" in cell]
        gaps = [f"{cell['title']}: {cell.get('gap') or cell.get('reason')}" for cell in peers_table.ordered(result)]
        gaps = list(dict.fromkeys(gap for gap in gaps if not gap.endswith(": None")))
        ours = frozenset(at for at, cell in enumerate(cells) if cell["title"].startswith("highwall"))
        rows = tuple(tuple(peers_table.row(cell)) for cell in cells)
        title = f"{result['network']}, beside the artifact that ships"
        note = f"not run: {'; '.join(gaps)}" if gaps else ""
        made.tables.append(Table(title, "measured", peers_table.HEAD, rows, ours, note))
        drawn = [(cell["title"], cell["ratio"], *cell["ratio_interval"]) for cell in cells if cell["threads"] == 1]
        if drawn:
            caption = f"{result['network']}, one thread; left of the line is faster"
            made.pictures.append((caption, partial(plots.ratios, drawn)))
        here = result["machine"]
        made.machine = f"{_processor(here)}, {here['cores']} cores, Python {here['python']}"
        for cell in cells:
            made.figures[f"{result['network']}: {cell['title']}, {cell['threads']} threads: times ours"] = cell["ratio"]
    return made


def edge(folder: Path) -> Section | None:
    """The paper's figure 6."""
    if not list((folder / "edge").glob("figure6*.json")):
        return None
    found = edge_table.results(folder / "edge")
    made = Section(
        "edge",
        "The edge beside the cloud",
        "The paper's figure 6: a central data centre alone, and with two edge centres beside it, as network namespaces "
        "whose links the kernel shapes and a proxy delays and drops, every host with the same share of a core. "
        "Prediction moves the scene or moves the answer; training moves the samples or the gradients.",
        tuple(result["command"] for result in found),
    )
    for result in found:
        made.date(result)
        kind = "measured" if result["kind"] == "measured" else "estimated"
        made.tables += parse(edge_table.table(result), kind, f"Cloud and edge, {result['kind']}")
        off = _taken_off(result)
        for (task, link, network), percent in off.items():
            made.figures[f"{result['kind']}: {task}, {link} link, {network}: % taken off"] = round(percent, 1)
        if kind == "measured":
            drawn = [(f"{task}, {link} link, {name}", percent) for (task, link, name), percent in off.items()]
            caption = "Time that the edge takes off, %; dotted: what the paper reports"
            made.pictures.append((caption, partial(plots.off, drawn)))
    made.points = tuple(line.removeprefix("- ") for line in edge_table.explanation(found).splitlines())
    return made


def _taken_off(result: dict[str, Any]) -> dict[tuple[str, str, str], float]:
    """Per cent of the cloud's time that the edge takes off, by task, link and network: medians over runs."""
    found: dict[tuple[str, str, str], list[float]] = {}
    for cell in result["cells"].values():
        key = (edge_table.HEADS[cell["task"]], cell["link"], edge_table.NAMES[cell["network"]])
        found.setdefault(key, []).append(reduction(cell["cloud"]["seconds"], cell["edge"]["seconds"]))
    return {key: median(percents) for key, percents in sorted(found.items())}


def loss(folder: Path) -> Section | None:
    """What clients lose."""
    if not (folder / "loss").is_dir():
        return None
    made = Section(
        "loss",
        "What a client loses",
        "Numbered readings through a real pty, the client, a link that can stall, a real mosquitto, and counted behind "
        "it. Lost is what never came and nobody owned up to.",
        ("highwall bench loss --client NAME --scenario NAME --results DIR", "highwall bench loss --table"),
    )
    made.tables = parse(loss_table(folder / "loss"), "measured", "Lost of what was sent")
    for path in sorted((folder / "loss").glob("*.json")):
        said = load(path)
        if said is not None:
            made.figures[f"{said['client']}, {said['about']}: lost"] = said["lost"]
    return made


def load(path: Path) -> dict[str, Any] | None:
    """A result; None where nobody measured it. Raises HighwallError where it is damaged."""
    if not path.exists():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise HighwallError(f"{path} is no result: {error}; measure it again") from error
    if not isinstance(found, dict):
        raise HighwallError(f"{path} is no result; measure it again")
    return found


def every(folder: Path) -> list[Section]:
    """The page's sections, of what was measured."""
    made: Sequence[Section | None] = [
        cost(folder),
        *latency(folder),
        instructions(folder),
        peers(folder),
        edge(folder),
        loss(folder),
    ]
    found = [one for one in made if one is not None]
    if not found:
        raise HighwallError(f"{folder} holds no results; write some with highwall bench suite --results {folder}/suite")
    return found
