"""A picture of a prediction: the image with what was found drawn over it. Needs Pillow."""

import io
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from targets.runtime.files import atomic_write
from targets.runtime.predict import Prediction, Tile

if TYPE_CHECKING:
    from PIL.Image import Image

LEAST: Final = 384  # pixels of the longer side; a 48 pixel chip is enlarged eight times
_BAR: Final = 26
_RED: Final = np.array([230, 30, 30])
_YELLOW: Final = (255, 220, 0)
_QUALITIES: Final = (85, 70, 55, 40, 25)  # of JPEG; below, blocks look like cracks


def write_overlay(path: Path, image: NDArray[Any], prediction: Prediction, label: str) -> None:
    """Draw `prediction` on `image` and write it to `path` (.png), whole or not at all."""
    with atomic_write(path) as partial:
        draw_overlay(image, prediction, label).save(partial, format="PNG")


def draw_overlay(image: NDArray[Any], prediction: Prediction, label: str) -> "Image":
    """The picture: small images enlarged without smoothing, a line of text above.

    Segmented: the mask tinted and outlined in red, its boxes in yellow. Classified: each tile tinted red
    by its probability, with the number where it fits.
    """
    from PIL import Image, ImageDraw

    factor = max(1, math.ceil(LEAST / max(image.shape[:2])))
    shown = _enlarge(display(image), factor).astype(np.float64)
    if prediction.map is not None:
        _tint(shown, _enlarge(prediction.map, factor) >= np.float32(prediction.threshold))
    picture = Image.new("RGB", (shown.shape[1], shown.shape[0] + _BAR))
    picture.paste(Image.fromarray(shown.astype(np.uint8)), (0, _BAR))
    picture = _draw_tiles(picture, prediction.tiles or (), prediction.threshold, factor)
    pen = ImageDraw.Draw(picture)
    for box in prediction.boxes:
        left, top = box.col * factor - 1, box.row * factor + _BAR - 1
        right, bottom = left + box.width * factor + 1, top + box.height * factor + 1
        pen.rectangle((left, top, right, bottom), outline=_YELLOW)
    pen.rectangle((0, 0, picture.width, _BAR - 1), fill=(0, 0, 0))
    text = f"{label} {prediction.probability:.3f} (threshold {prediction.threshold:.3f})"
    pen.text((6, 4), text, fill=(255, 255, 255), font=_font(16))
    return picture


def display(image: NDArray[Any]) -> NDArray[np.uint8]:
    """`image` (H, W, C) as uint8 (H, W, 3) for the eye: the first three bands, or the first one as grey.

    8-bit numbers stay; others are stretched from their 2nd to their 98th percentile, band by band.
    """
    bands: NDArray[Any] = image[:, :, :3] if image.shape[2] >= 3 else np.repeat(image[:, :, :1], 3, axis=2)
    if bands.dtype == np.uint8:
        return np.asarray(bands, np.uint8)
    low, high = np.percentile(bands, (2, 98), axis=(0, 1))
    stretched = (bands - low) / np.maximum(high - low, 1e-9)
    return np.asarray(np.clip(stretched, 0, 1) * 255, np.uint8)


def thumbnail(image: NDArray[Any], mask: NDArray[np.bool_] | None, most_bytes: int, side: int) -> bytes:
    """A JPEG of `image` (H, W, C) in at most `most_bytes`; empty where not even the smallest one fits.

    Its longer side has at most `side` pixels. `mask` (H, W) is tinted and outlined in red, and a crack one pixel wide
    is seen however small the picture. To save bytes its quality goes first, then its size.
    """
    while side >= 8:
        picture = _shrunk(image, mask, side)
        for quality in _QUALITIES:
            buffer = io.BytesIO()
            picture.save(buffer, format="JPEG", quality=quality, optimize=True)
            if buffer.tell() <= most_bytes:
                return buffer.getvalue()
        side = side * 3 // 4
    return b""


def _shrunk(image: NDArray[Any], mask: NDArray[np.bool_] | None, side: int) -> "Image":
    """The image for the eye, no side longer than `side`, with what the mask holds in red."""
    from PIL import Image

    height, width = (max(1, min(length, length * side // max(image.shape[:2]))) for length in image.shape[:2])
    step = max(1, max(image.shape[:2]) // (4 * side))  # the rest is smoothed: no copy of the whole image is made
    picture = Image.fromarray(np.ascontiguousarray(display(image[::step, ::step])))
    picture = picture.resize((width, height), Image.Resampling.BOX)
    if mask is None or not mask.any():
        return picture
    rows, columns = (np.arange(few) * many // few for few, many in zip((height, width), mask.shape, strict=True))
    small = np.logical_or.reduceat(np.logical_or.reduceat(mask, rows, 0), columns, 1)
    shown = np.asarray(picture, np.float64).copy()
    _tint(shown, small)
    return Image.fromarray(shown.astype(np.uint8))


def _enlarge(array: NDArray[Any], factor: int) -> NDArray[Any]:
    return array.repeat(factor, axis=0).repeat(factor, axis=1)


def _tint(shown: NDArray[np.float64], mask: NDArray[np.bool_]) -> None:
    """Redden `shown` (H, W, 3), in place, where `mask` (H, W) is set, fully along its outline."""
    edged = np.pad(mask, 1)
    inner = edged[:-2, 1:-1] & edged[2:, 1:-1] & edged[1:-1, :-2] & edged[1:-1, 2:]
    shown[mask] = 0.6 * shown[mask] + 0.4 * _RED
    shown[mask & ~inner] = _RED


def _draw_tiles(picture: "Image", tiles: tuple[Tile, ...], threshold: float, factor: int) -> "Image":
    """`picture` with every tile tinted by its probability, in a yellow frame if it reaches the threshold.

    One tile alone is left as it is: the bar above says all there is to say.
    """
    from PIL import Image, ImageDraw

    if len(tiles) < 2:
        return picture
    layer = Image.new("RGBA", picture.size)
    pen = ImageDraw.Draw(layer)
    red = (int(_RED[0]), int(_RED[1]), int(_RED[2]))
    for tile in tiles:
        left, top = tile.col * factor, tile.row * factor + _BAR
        right, bottom = left + tile.width * factor - 1, top + tile.height * factor - 1
        outline = _YELLOW if tile.probability >= np.float32(threshold) else (255, 255, 255, 90)
        pen.rectangle((left, top, right, bottom), fill=(*red, int(110 * tile.probability)), outline=outline)
        if tile.width * factor >= 40:
            pen.text((left + 4, top + 3), f"{tile.probability:.2f}", fill=(255, 255, 255), font=_font(13))
    return Image.alpha_composite(picture.convert("RGBA"), layer).convert("RGB")


def _font(size: int) -> Any:
    """Pillow's own font, so that a picture looks the same on every machine."""
    from PIL import ImageFont

    return ImageFont.load_default(size)
