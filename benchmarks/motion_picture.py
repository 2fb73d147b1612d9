"""A picture of what `benchmarks.motion` measured: what was told for what, and how far places lie from the truth."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from targets.runtime.files import atomic_write

CELL, LEFT, MARGIN = 58, 90, 16
COLOURS = ("#1d4ed8", "#c2410c", "#0f766e", "#6d28d9", "#a16207", "#be185d")


def picture(
    result: dict[str, Any], path: Path, kinds: Sequence[str], noises: Sequence[float], counts: Sequence[int]
) -> None:
    """Write a PNG: the confusion by rows, then the error of a place against noise: line rms, dots what was stated."""
    wide = LEFT + len(kinds) * CELL + 2 * MARGIN
    image = Image.new("RGB", (2 * wide + MARGIN, (len(kinds) + 1) * CELL + 3 * MARGIN), "white")
    pen = ImageDraw.Draw(image)
    first = next(iter(result["motion"].values()))["confusion"]
    pen.text((MARGIN, MARGIN), "truth: row, said: column, share of the row", fill="black")
    for i, truth in enumerate(kinds):
        top = (i + 1) * CELL
        pen.text((MARGIN, top + CELL // 2), truth, fill="black")
        pen.text((LEFT + i * CELL + 8, top - i * CELL - MARGIN), truth, fill="black")
        for j, word in enumerate(kinds):
            part = first[truth].get(word, 0) / max(1, sum(first[truth].values()))
            shade = round(255 * (1 - part))
            corner = LEFT + j * CELL
            box = (corner, top, corner + CELL - 2, top + CELL - 2)
            pen.rectangle(box, fill=(shade, shade, 255), outline="#e5e7eb")
            pen.text((corner + 14, top + CELL // 2 - 6), f"{part:.3f}", fill="black" if part < 0.6 else "white")
    left, base = wide + LEFT // 2, CELL + len(kinds) * CELL
    most = max(max(one["rms"], one["stated"]) for one in result["place"].values())
    scale = (base - CELL) / most
    pen.text((left, MARGIN), "error of a place, m, against noise, dB: line true, dots stated (rms)", fill="black")
    for step in range(0, int(most) + 1, 200):
        pen.line((left, base - step * scale, 2 * wide, base - step * scale), fill="#e5e7eb")
        pen.text((left - 34, base - step * scale - 6), str(step), fill="black")
    along = {noise: left + 20 + i * (wide - LEFT - MARGIN) / len(noises) for i, noise in enumerate(noises)}
    for noise, x in along.items():
        pen.text((x - 6, base + 4), f"{noise:g}", fill="black")
    for count, colour in zip(counts, COLOURS, strict=False):
        ones = [(along[noise], result["place"][f"{count}, {noise:g} dB"]) for noise in noises]
        pen.line([(x, base - one["rms"] * scale) for x, one in ones], fill=colour, width=2)
        for x, one in ones:
            y = base - one["stated"] * scale
            pen.ellipse((x - 3, y - 3, x + 3, y + 3), outline=colour)
        x, one = ones[-1]
        pen.text((x + 8, base - one["rms"] * scale - 6), f"{count} gateway" + "s" * (count > 1), fill=colour)
    with atomic_write(path) as partial:
        image.save(partial, format="PNG")
