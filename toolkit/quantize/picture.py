"""A picture of sensitivity: one bar a layer, the most sensitive on top."""

import math
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw

from targets.runtime.files import atomic_write
from toolkit.quantize.sensitivity import Sensitivity

ROW, MARGIN, BAR = 16, 12, 420
COLOURS = {"depthwise": "#c2410c", "pointwise": "#1d4ed8", "convolution": "#0f766e", "linear": "#6d28d9"}


def draw(ranked: Sequence[Sensitivity], path: Path) -> None:
    """Write a PNG: bars are SQNR in dB, so a short bar is a layer that int8 hurts; colours tell its kind."""
    names = max((len(one.layer) for one in ranked), default=1) * 7 + 2 * MARGIN
    size = (names + BAR + 90, (len(ranked) + 2) * ROW + 2 * MARGIN)
    picture = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(picture)
    most = max((one.sqnr_db for one in ranked if math.isfinite(one.sqnr_db)), default=1.0)
    x = MARGIN
    for kind, colour in COLOURS.items():
        pen.rectangle((x, MARGIN + 3, x + 9, MARGIN + 12), fill=colour)
        pen.text((x + 14, MARGIN), kind, fill="black")
        x += 110
    for row, one in enumerate(ranked, 2):
        y = MARGIN + row * ROW
        pen.text((MARGIN, y), one.layer, fill="black")
        length = round(BAR * min(1.0, max(0.0, one.sqnr_db / max(most, 1e-9))))
        pen.rectangle((names, y + 1, names + max(1, length), y + ROW - 4), fill=COLOURS[one.kind])
        pen.text(
            (names + length + 6, y), "no noise" if math.isinf(one.sqnr_db) else f"{one.sqnr_db:.1f} dB", fill="black"
        )
    with atomic_write(path) as partial:
        picture.save(partial, format="PNG")
