"""The pictures of figures 4 and 5: bars of average precision, and maps over photographs."""

import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from benchmarks.paper.boxes import spread
from benchmarks.paper.budgets import OVERLAPS
from benchmarks.paper.cells import Cell, Store
from benchmarks.paper.data import Sources
from benchmarks.paper.networks import TITLES
from targets.runtime.files import atomic_write
from targets.runtime.overlay import display

COLOURS = ("#1d4ed8", "#0f766e", "#c2410c", "#6d28d9")  # one an overlap
ROW, MARGIN, LABELS, BAR = 12, 14, 210, 460
RED, YELLOW = np.array([230.0, 30.0, 30.0]), np.array([255.0, 220.0, 0.0])
MOST_BYTES = 300_000


def bars(rows: Sequence[tuple[str, Sequence[dict[str, Any]]]], path: Path) -> None:
    """Average precision at each overlap, a group of bars a network, from 0 to 1."""
    group = ROW * len(OVERLAPS) + 10
    top = MARGIN + 30
    picture = Image.new("RGB", (LABELS + BAR + 80, top + group * len(rows) + 30), "white")
    pen = ImageDraw.Draw(picture)
    font = _font(12)
    for index, (overlap, colour) in enumerate(zip(OVERLAPS, COLOURS, strict=True)):
        x = LABELS + index * 115
        pen.rectangle((x, MARGIN + 2, x + 9, MARGIN + 11), fill=colour)
        pen.text((x + 14, MARGIN - 2), f"IoU {overlap:g}", fill="black", font=font)
    bottom = top + group * len(rows)
    for tenth in range(0, 11, 2):
        x = LABELS + round(BAR * tenth / 10)
        pen.line((x, top - 4, x, bottom), fill="#d4d4d4")
        pen.text((x - 8, bottom + 4), f"{tenth / 10:g}", fill="black", font=font)
    for number, (label, results) in enumerate(rows):
        y = top + number * group
        pen.text((MARGIN, y + group // 2 - 12), label, fill="black", font=font)
        done = [result for result in results if result["status"] == "done"]
        if not done:
            pen.text((LABELS + 4, y + group // 2 - 12), str(results[0]["status"]), fill="black", font=font)
            continue
        for index, (overlap, colour) in enumerate(zip(OVERLAPS, COLOURS, strict=True)):
            value = statistics.mean(result["ap"][result["threshold"]][f"{overlap:g}"] for result in done)
            at = y + index * ROW
            pen.rectangle((LABELS, at, LABELS + round(BAR * value), at + ROW - 3), fill=colour)
            pen.text((LABELS + round(BAR * value) + 5, at - 3), f"{value:.3f}", fill="black", font=_font(10))
    pen.text((LABELS, bottom + 16), "average precision of boxes", fill="black", font=font)
    with atomic_write(path) as partial:
        picture.save(partial, format="PNG", optimize=True)


def panel(store: Store, cells: Sequence[Cell], sources: Sources, path: Path) -> None:
    """Held-out photographs, a row each: the mask's outline, then each cell's map; at most MOST_BYTES."""
    index = {name: i for i, name in enumerate(sources.photographs.names)}
    columns = [found for cell in cells if (found := _column(store, cell)) is not None]
    if not columns:
        return
    rows = []
    for name in columns[0].maps:
        image = display(sources.photographs.images[index[name]])
        mask = sources.photographs.labels[index[name]] > 0
        rows.append([_outlined(image, mask)] + [_tinted(image, one.maps[name], one.threshold) for one in columns])
    titles = ["mask", *(one.title for one in columns)]
    for side in (208, 176, 144, 112, 80):
        with atomic_write(path) as partial:
            _sheet(rows, titles, side).quantize(96).save(partial, format="PNG", optimize=True)
            size = partial.stat().st_size
        if size <= MOST_BYTES:
            return


@dataclass(frozen=True, eq=False)
class _Column:
    """The maps of one cell by photograph, and the threshold from which they say crack."""

    title: str
    threshold: float
    maps: dict[str, NDArray[np.uint8]]


def _column(store: Store, cell: Cell) -> _Column | None:
    """What is kept beside a cell's result of the first fold and seed that are done."""
    pattern = store.path(cell).name.replace("fold0-seed0.json", "fold*-seed*.npz")
    for path in sorted(store.path(cell).parent.glob(pattern)):
        with np.load(path) as kept:
            maps = {name: kept[name] for name in kept.files}
        fold, seed = (int(number) for number in re.findall(r"(?:fold|seed)(\d+)", path.stem))
        if (result := store.read(cell.on(fold, seed))) is not None:
            title = f"{TITLES[cell.network]}, {'windows' if cell.task == 'patches' else 'pixels'}"
            return _Column(title, float(result["threshold"]), maps)
    return None


def _tinted(image: NDArray[np.uint8], kept: NDArray[np.uint8], threshold: float) -> NDArray[np.uint8]:
    probability: NDArray[np.float32] = kept.astype(np.float32) / np.float32(255)
    if kept.shape != image.shape[:2]:  # a map of windows
        probability = spread(probability, (image.shape[0], image.shape[1]))
    weight = np.where(probability >= threshold, 0.65, 0.2 * probability)[..., None]
    return np.asarray(image * (1 - weight) + RED * weight, np.uint8)


def _outlined(image: NDArray[np.uint8], mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    edged = np.pad(mask, 1)
    inner = edged[:-2, 1:-1] & edged[2:, 1:-1] & edged[1:-1, :-2] & edged[1:-1, 2:]
    shown = image.copy()
    shown[mask & ~inner] = YELLOW.astype(np.uint8)
    return shown


def _sheet(rows: Sequence[Sequence[NDArray[np.uint8]]], titles: Sequence[str], side: int) -> Image.Image:
    gap, head = 4, 20
    sheet = Image.new("RGB", (len(titles) * (side + gap) - gap, head + len(rows) * (side + gap) - gap), "white")
    pen = ImageDraw.Draw(sheet)
    for column, title in enumerate(titles):
        pen.text((column * (side + gap), 3), title, fill="black", font=_font(12))
        for row, images in enumerate(rows):
            shown = Image.fromarray(images[column]).resize((side, side), Image.Resampling.LANCZOS)
            sheet.paste(shown, (column * (side + gap), head + row * (side + gap)))
    return sheet


def _font(size: int) -> Any:
    """Pillow's own font, so that a picture looks the same on every machine."""
    return ImageFont.load_default(size)
