"""Image files and npz archives into one array of pixels, or one clear line on why not."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from targets.runtime.errors import HighwallError
from targets.runtime.image import read_image
from toolkit.data.samples import PIXEL_DTYPES, Pixels

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".tif", ".tiff", ".npy"})


def image_files(folder: Path) -> list[Path]:
    """The image files directly in `folder`, sorted by name; hidden files are passed over."""
    return sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".") and path.is_file()
    )


def stack(files: Sequence[Path]) -> Pixels:
    """The images of `files` as one array, (N,H,W,C) uint8 or uint16.

    Raises HighwallError when there is none, one is unreadable or has NaN, or two differ in size or dtype.
    """
    if not files:
        raise HighwallError("no images to read; expected png, jpg, tif or npy files")
    first = checked(read_image(files[0]), files[0])
    images = np.empty((len(files), *first.shape), dtype=first.dtype)
    for row, file in enumerate(tqdm(files, desc="reading images", unit="image", leave=False, delay=2, disable=None)):
        image = first if row == 0 else checked(read_image(file), file)
        if image.shape != first.shape or image.dtype != first.dtype:
            raise HighwallError(
                f"{files[0]} is {_form(first)} and {file} is {_form(image)}; "
                "images of one folder must have one size, band count and depth"
            )
        images[row] = image
    return images


def checked(pixels: NDArray[Any], where: Path) -> Pixels:
    """`pixels` as uint8 or uint16 of this machine's byte order, or HighwallError: NaN, or another dtype."""
    if pixels.dtype.kind == "f":
        bad = int(np.size(pixels) - np.isfinite(pixels).sum())
        if bad:
            raise HighwallError(f"{where} has {bad} NaN or infinite pixels; fill them or leave the image out")
    if pixels.dtype.kind != "u" or pixels.dtype.itemsize > 2:
        raise HighwallError(f"{where} has {pixels.dtype} pixels; expected uint8, or uint16 such as reflectance * 10000")
    return pixels.astype(pixels.dtype.newbyteorder("="), copy=False)


def read_mask(path: Path, image: Path, size: tuple[int, int]) -> NDArray[np.uint8]:
    """A mask as (H,W) uint8 of 0 and 1, where white is 1; `image` of `size` is what it belongs to.

    Raises HighwallError for another size, or values that are neither 0 and 1 nor black and white.
    """
    mask = read_image(path)
    if mask.shape[:2] != size:
        raise HighwallError(
            f"mask {path} is {mask.shape[0]}x{mask.shape[1]} px and its image {image} "
            f"is {size[0]}x{size[1]}; make them one size"
        )
    white: NDArray[Any] = mask[:, :, :3].min(axis=2)
    if np.isin(white, (0, 1)).all():
        return np.asarray(white, dtype=np.uint8)
    # Antialiased and JPEG masks have greys as well as white; class numbers such as 2 never reach white.
    half = np.iinfo(mask.dtype).max // 2 if mask.dtype in PIXEL_DTYPES else np.inf
    if white.max() <= half:
        raise HighwallError(f"mask {path} has values up to {white.max()}; expected 0 and 1, or black and white")
    return np.asarray(white > half, dtype=np.uint8)


def load_npz(path: Path) -> dict[str, NDArray[Any]]:
    """Every array of an npz file. Raises HighwallError when it is damaged or holds Python objects."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except Exception as error:  # a decoder fed foreign bytes may raise anything
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise HighwallError(f"cannot read {path}: {reason}; write it anew with numpy.savez") from error


def npz_images(arrays: dict[str, NDArray[Any]], path: Path) -> Pixels:
    """The chips `x` of an npz file, (N,H,W,C). Raises HighwallError when there are none."""
    if "x" not in arrays:
        raise HighwallError(f"{path} has no x (it has {', '.join(arrays) or 'nothing'}); add x of shape N,H,W,C")
    images = arrays["x"]
    if images.ndim != 4 or 0 in images.shape:
        raise HighwallError(f"x of {path} has shape {list(images.shape)}; expected N,H,W,C with nothing empty")
    return checked(images, path)


def npz_labels(arrays: dict[str, NDArray[Any]], count: int, path: Path) -> NDArray[np.uint8]:
    """The labels `y` of an npz file, (N,) uint8 of 0 and 1. Raises HighwallError for any other."""
    if "y" not in arrays:
        raise HighwallError(f"{path} has no y (it has {', '.join(arrays)}); add y, 0 or 1 for each chip")
    labels = arrays["y"]
    if labels.shape != (count,):
        raise HighwallError(f"y of {path} has shape {list(labels.shape)} for {count} chips; expected [{count}]")
    wrong = ~np.isin(labels, (0, 1))
    if wrong.any():
        raise HighwallError(
            f"y of {path} has {int(wrong.sum())} labels that are not 0 or 1, such as {labels[wrong][0]}; mend them"
        )
    return labels.astype(np.uint8)


def _form(image: Pixels) -> str:
    return f"{image.shape[0]}x{image.shape[1]} px of {image.shape[2]} bands, {image.dtype}"
