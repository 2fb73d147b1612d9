"""Reading an image file (PNG, JPEG, TIFF, npy) as raw numbers, with one clear line for a bad one."""

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from targets.runtime.errors import HighwallError
from targets.runtime.manifest import InputSpec

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_BYTES: Final = 2 * 2**30  # of decoded pixels; a header may claim more than any memory
_TIFF_MARKS: Final = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_LIMIT: Final = {"uint8": 255, "uint16": 65535}


def read_image(path: Path, most_bytes: int = MAX_BYTES) -> NDArray[Any]:
    """The pixels of `path` as (H, W, C), unscaled: uint8 or uint16 from pictures, any number type from npy.

    Grey gives one band, a palette is looked up, transparency is dropped (blending would invent readings),
    a camera's EXIF rotation is applied. Raises HighwallError for a missing, damaged, empty or NaN image, and for
    one whose header claims more than `most_bytes` of pixels, before that memory is taken.
    """
    path = Path(path)
    try:
        with path.open("rb") as handle:
            mark = handle.read(4)
    except FileNotFoundError as error:
        raise HighwallError(f"{path} does not exist; check the name of the image") from error
    except OSError as error:
        raise HighwallError(f"cannot read {path}: {error.strerror or error}") from error
    if not mark:
        raise HighwallError(f"{path} is empty; copy the image again")
    if path.suffix.lower() == ".npy":
        image = _read_npy(path, most_bytes)
    elif mark in _TIFF_MARKS:
        image = _read_tiff(path, most_bytes)
    else:
        image = _read_picture(path, most_bytes)
    if image.ndim == 2:
        image = image[:, :, None]
    if image.ndim != 3 or 0 in image.shape:
        raise HighwallError(f"{path} has shape {image.shape}; an image is (H, W) or (H, W, bands), none of them 0")
    if image.dtype.kind == "f" and (bad := int(np.count_nonzero(~np.isfinite(image)))):
        raise HighwallError(f"{path} has {bad} NaN or infinite pixels of {image.size}; fill them first")
    return image


def check_image(image: NDArray[Any], spec: InputSpec, path: Path) -> NDArray[Any]:
    """`image` (H, W, C) in the dtype that `spec` asks for, whatever its size.

    Whole numbers in another number type are taken if they fit; 8-bit for 16-bit pictures, or the reverse,
    are not, because they are on another scale. Raises HighwallError naming `path` and both sides.
    """
    if image.shape[2] != spec.bands:
        raise HighwallError(f"{path} has {image.shape[2]} bands where the model takes {spec.bands}")
    if image.dtype == np.dtype(spec.dtype):
        return image
    if image.dtype in (np.uint8, np.uint16):
        raise HighwallError(f"{path} is {image.dtype} where the model takes {spec.dtype}; convert its scale first")
    low, high, limit = image.min(), image.max(), _LIMIT[spec.dtype]
    if not (low >= 0 and high <= limit and (image == np.floor(image)).all()):
        raise HighwallError(
            f"{path} is {image.dtype} from {low:g} to {high:g} where the model takes {spec.dtype}, "
            f"whole numbers from 0 to {limit}"
        )
    return image.astype(spec.dtype)


def _read_npy(path: Path, most_bytes: int) -> NDArray[Any]:
    try:
        # Mapped, so that a header which claims more than the file holds is refused before memory is taken.
        array = np.lib.format.open_memmap(path, mode="r")
    except Exception as error:  # a parser fed foreign bytes may raise anything; numpy's does
        raise HighwallError(f"{path} is not a readable npy file (damaged or truncated?)") from error
    if array.dtype.kind not in "uif":
        raise HighwallError(f"{path} holds {array.dtype}; an image holds numbers")
    if array.nbytes > most_bytes:
        raise HighwallError(f"{path} is {array.shape} {array.dtype}, too large to read at once; cut it up")
    return np.array(array)


def _read_tiff(path: Path, most_bytes: int) -> NDArray[Any]:
    """Pillow for what it keeps whole (grey, RGB); rasterio for many bands or more than 8 bits in several."""
    from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path, formats=["TIFF"]) as image:
                bits = image.tag_v2.get(258, (1,))  # type: ignore[attr-defined]
                extra = image.tag_v2.get(338, ())  # type: ignore[attr-defined]
                # Extra samples of kind 0 are plain bands, not transparency; Pillow drops some of them silently.
                whole = (len(bits) == 1 or max(bits) <= 8) and 0 not in extra
    except (UnidentifiedImageError, SyntaxError):
        whole = False
    except Exception as error:  # as above
        raise _damaged(path, error) from error
    return _read_picture(path, most_bytes) if whole else _read_bands(path, most_bytes)


def _read_picture(path: Path, most_bytes: int) -> NDArray[Any]:
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of large pictures; the limit below is ours
            with Image.open(path, formats=["PNG", "JPEG", "TIFF"]) as image:
                deep = image.format == "PNG" and ";16" in _raw_mode(image) and not image.mode.startswith("I")
                _check_size(path, image.height, image.width, 4, most_bytes)
                pixels = _pixels(ImageOps.exif_transpose(image))
    except HighwallError:
        raise
    except UnidentifiedImageError as error:
        raise HighwallError(f"{path} is no PNG, JPEG, TIFF or npy image, or its beginning is damaged") from error
    except Exception as error:  # as above
        raise _damaged(path, error) from error
    if deep:
        raise HighwallError(f"{path} is a PNG of several 16-bit bands, which Pillow cuts to 8; save it as TIFF or npy")
    return pixels


def _raw_mode(image: "Image") -> str:
    """The layout of the pixels in the file, which `image.mode` does not tell of 16-bit colour."""
    return str(getattr(image, "tile", ""))


def _pixels(image: "Image") -> NDArray[Any]:
    """The numbers of a Pillow image in as many bands as it has, less its transparency."""
    if image.mode in ("L", "RGB", "F"):
        return np.array(image)
    if image.mode in ("1", "LA", "La"):
        return np.array(image.convert("L"))
    if image.mode.startswith("I"):
        numbers = np.array(image)
        return numbers.astype(np.uint16) if numbers.min() >= 0 and numbers.max() <= 65535 else numbers
    return np.array(image.convert("RGB"))


def _read_bands(path: Path, most_bytes: int) -> NDArray[Any]:
    try:
        import rasterio
    except ModuleNotFoundError as error:
        raise HighwallError(f"{path} is a TIFF that Pillow cannot read; pip install 'highwall[geo]'") from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an image without a place on the map is no fault here
            with rasterio.open(path, driver="GTiff") as dataset:
                width = max(np.dtype(dtype).itemsize for dtype in dataset.dtypes)
                _check_size(path, dataset.height, dataset.width, dataset.count * width, most_bytes)
                kinds = zip(dataset.indexes, dataset.colorinterp, strict=True)
                bands: NDArray[Any] = dataset.read([index for index, kind in kinds if kind.name != "alpha"])
    except HighwallError:
        raise
    except Exception as error:  # as above
        raise _damaged(path, error) from error
    return np.ascontiguousarray(np.moveaxis(bands, 0, -1))


def _check_size(path: Path, height: int, width: int, pixel_bytes: int, most_bytes: int) -> None:
    if height * width * pixel_bytes > most_bytes:
        raise HighwallError(f"{path} says it is {width} x {height} pixels, too large to read at once; cut it up")


def _damaged(path: Path, error: Exception) -> HighwallError:
    reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
    return HighwallError(f"{path} is damaged or truncated ({reason}); copy the image again")
