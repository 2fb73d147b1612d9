"""Search every recipe for every board under the committed contract, and keep what was found.

    python -m benchmarks.recipes --model mine --data DIR

Writes one JSON under --results and prints it as tables; `--table` only prints what is there.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.script import script
from targets.board import boards
from targets.runtime.files import write_text
from toolkit import contract
from toolkit.build import NoCandidate, Order, carry_out
from toolkit.cache import Cache
from toolkit.calibration import Calibration
from toolkit.compiler import Compiler, packages
from toolkit.data.folder import read
from toolkit.models import find
from toolkit.quantize.recipes import RECIPES

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "recipes"


def run(name: str, data: Path, limits: Path) -> dict[str, Any]:
    """The candidates and the choice of each board; without the cache, so that the seconds are those of a search."""
    started = time.perf_counter()
    model, network = find(name)
    learned = Calibration.of(read(data), model)
    compiler = Compiler(model, network, learned, Cache(None), lambda line: print(f"- {line}", flush=True))
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for board in boards():
            limit = contract.read(limits).of(board.name, model.network.task)
            order = Order(board.name, Path(folder) / f"{board.name}.highwall", tuple(RECIPES.values()), limit)
            try:
                receipt = carry_out(compiler, order)
            except NoCandidate as error:
                found[board.name] = {"chosen": None, "missed": str(error)}
                continue
            found[board.name] = {"chosen": receipt["recipe"]["name"], "candidates": receipt["candidates"]}
            if board.name == "host":  # the machine this ran on is nobody else's
                found[board.name].pop("candidates")
    return {
        "command": f"python -m benchmarks.recipes --model {name} --data DIR",
        "contract": contract.read(limits).of("rpi4b", model.network.task).as_dict()["limits"],
        "data": learned.identity,
        "judged": 0 if learned.judged is None else len(learned.judged),
        "packages": packages(),
        "boards": found,
        "seconds": {"whole": round(time.perf_counter() - started), "recipes": compiler.seconds},
    }


def table(result: dict[str, Any]) -> str:
    """Markdown: the choice a board, then a Pi 4B's candidates, drops in points of a hundred."""
    chosen = ", ".join(f"{board} {found['chosen'] or 'none'}" for board, found in result["boards"].items())
    rows = result["boards"]["rpi4b"].get("candidates", [])
    keys = dict.fromkeys(key for row in rows for key in row)
    metrics = [key.removeprefix("drop.") for key in keys if key.startswith("drop.")]
    heads = ["recipe", "work, M", "kB", "parity", *(f"{metric}, drop" for metric in metrics), "verdict on a Pi 4B"]
    lines = [f"Chosen: {chosen}.", "", "| " + " | ".join(heads) + " |", "| --- " * len(heads) + "|"]
    for row in rows:
        cells = [row["recipe"], f"{row['work'] / 1e6:.2f}"]
        if "model_bytes" in row:
            cells += [f"{row['model_bytes'] / 1000:,.0f}", f"{row['parity_error']:.1e}"]
            cells += [
                f"{row[metric]:.4f}, {row[f'drop.{metric}'] * 100:+.2f}" if metric in row else "-" for metric in metrics
            ]
        else:
            cells += ["-"] * (2 + len(metrics))
        lines.append("| " + " | ".join([*cells, row["verdict"]]) + " |")
    return "\n".join(lines)


def main() -> None:
    """Run the search asked for, or only print what is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="mine, crack or a checkpoint")
    parser.add_argument("--data", type=Path, help="labelled images")
    parser.add_argument("--contract", type=Path, help="default: benchmarks/contracts/MODEL.toml")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true", help="run nothing")
    args = parser.parse_args()
    out = args.results / f"{Path(args.model).stem}.json"
    if not args.table:
        if args.data is None:
            parser.error("--data is needed to search; --table prints what is there")
        limits = args.contract or HERE / "contracts" / f"{args.model}.toml"
        write_text(out, json.dumps(run(args.model, args.data, limits), indent=1) + "\n")
    if not out.is_file():
        parser.error(f"{out} is not there; run the search first")
    print(table(json.loads(out.read_text())))


if __name__ == "__main__":
    script(main)
