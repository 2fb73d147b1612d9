"""Images: every format gives its raw numbers, and every bad file one clear line that names it."""

import random
import sys
import warnings

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from targets.runtime.artifact import InputSpec
from targets.runtime.errors import HighwallError
from targets.runtime.image import check_image, read_image

RGB = np.random.RandomState(1).randint(0, 256, (11, 7, 3), np.uint8)
DEEP = np.random.RandomState(2).randint(0, 65536, (11, 7), np.uint16)


def refused(path) -> str:
    with pytest.raises(HighwallError) as caught:
        read_image(path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return message


def write_tiff(path, bands):
    """A GeoTIFF of `bands` (C, H, W), as GIS tools write them."""
    rasterio = pytest.importorskip("rasterio")
    count, height, width = bands.shape
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        shape = {"count": count, "height": height, "width": width}
        with rasterio.open(path, "w", driver="GTiff", dtype=bands.dtype, **shape) as file:
            file.write(bands)
    return path


@pytest.mark.parametrize("suffix", ["png", "tif", "tiff", "PNG"])
def test_colour_survives_without_loss(tmp_path, suffix):
    Image.fromarray(RGB).save(tmp_path / f"a.{suffix}")
    np.testing.assert_array_equal(read_image(tmp_path / f"a.{suffix}"), RGB)


def test_a_jpeg_is_read_by_content_whatever_its_name(tmp_path):
    smooth = np.repeat(np.arange(0, 240, 5, dtype=np.uint8)[:, None, None], 3, axis=2).repeat(30, axis=1)
    for name in ("a.jpg", "a.jpeg", "a.img"):
        Image.fromarray(smooth).save(tmp_path / name, format="JPEG", quality=98)
        found = read_image(tmp_path / name)
        assert found.shape == smooth.shape
        assert np.abs(found.astype(int) - smooth).max() < 6


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bit_grey_stays_16_bit(tmp_path, suffix):
    Image.fromarray(DEEP).save(tmp_path / f"a.{suffix}")
    found = read_image(tmp_path / f"a.{suffix}")
    assert found.dtype == np.uint16
    np.testing.assert_array_equal(found[:, :, 0], DEEP)


def test_grey_has_one_band_and_a_bitmap_is_black_and_white(tmp_path):
    Image.fromarray(RGB[:, :, 0]).save(tmp_path / "grey.png")
    np.testing.assert_array_equal(read_image(tmp_path / "grey.png"), RGB[:, :, :1])
    Image.fromarray(RGB[:, :, 0] > 99).save(tmp_path / "bits.png")
    np.testing.assert_array_equal(read_image(tmp_path / "bits.png")[:, :, 0], np.where(RGB[:, :, 0] > 99, 255, 0))


def test_a_palette_is_looked_up_and_transparency_dropped_without_blending(tmp_path):
    colours = Image.fromarray(RGB).quantize(16)
    colours.save(tmp_path / "palette.png", transparency=3)
    np.testing.assert_array_equal(read_image(tmp_path / "palette.png"), np.asarray(colours.convert("RGB")))
    alpha = np.dstack([RGB, np.arange(77, dtype=np.uint8).reshape(11, 7)])
    Image.fromarray(alpha).save(tmp_path / "alpha.png")
    np.testing.assert_array_equal(read_image(tmp_path / "alpha.png"), RGB)
    Image.fromarray(alpha[:, :, 2:]).save(tmp_path / "grey.png")
    np.testing.assert_array_equal(read_image(tmp_path / "grey.png"), RGB[:, :, 2:])


def test_a_camera_held_sideways_is_turned_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(RGB).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), np.rot90(RGB, -1))


@pytest.mark.parametrize(
    ("bands", "dtype"), [(13, np.uint16), (3, np.uint16), (2, np.uint8), (13, np.uint8), (1, np.int16)]
)
def test_a_tiff_of_any_bands_keeps_its_numbers(tmp_path, bands, dtype):
    numbers = np.random.RandomState(3).randint(0, 32000, (bands, 11, 7)).astype(dtype)
    found = read_image(write_tiff(tmp_path / "a.tif", numbers))
    np.testing.assert_array_equal(found, np.moveaxis(numbers, 0, -1))
    if dtype != np.int16:
        assert found.dtype == dtype


def test_many_bands_without_rasterio_say_what_to_install(tmp_path, monkeypatch):
    path = write_tiff(tmp_path / "a.tif", np.zeros((13, 5, 5), np.uint16))
    monkeypatch.setitem(sys.modules, "rasterio", None)
    assert "pip install 'highwall[geo]'" in refused(path)


def test_a_16_bit_colour_png_is_refused_rather_than_cut_to_8_bits(tmp_path):
    import struct
    import zlib

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    rows = b"".join(b"\0" + bytes(range(18)) for _ in range(2))
    header = struct.pack(">IIBBBBB", 3, 2, 16, 2, 0, 0, 0)
    data = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + data)
    assert "16-bit" in refused(tmp_path / "a.png")


# --- npy ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(11, 7), (11, 7, 1), (3, 5, 13)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32, np.float64, np.int64])
def test_an_npy_gives_its_numbers_with_a_band_axis(tmp_path, shape, dtype):
    array = np.arange(np.prod(shape)).reshape(shape).astype(dtype)
    np.save(tmp_path / "a.npy", array)
    found = read_image(tmp_path / "a.npy")
    assert (found.shape, found.dtype) == ((*shape, 1)[:3], array.dtype)
    np.testing.assert_array_equal(found.ravel(), array.ravel())


def test_nan_pixels_are_counted(tmp_path):
    array = np.zeros((5, 7, 3), np.float32)
    array[1, 2, 0] = array[4, 6, 2] = np.nan
    array[0, 0, 0] = np.inf
    np.save(tmp_path / "a.npy", array)
    assert "3 NaN or infinite pixels of 105" in refused(tmp_path / "a.npy")


@pytest.mark.parametrize(
    "array",
    [
        np.zeros(5),
        np.zeros((2, 3, 4, 5)),
        np.zeros((0, 3)),
        np.zeros((3, 0, 3)),
        np.float64(3),
        np.zeros((3, 3), bool),
        np.zeros((3, 3), complex),
        np.array([["a"]]),
    ],
)
def test_an_npy_that_is_no_image_is_refused(tmp_path, array):
    np.save(tmp_path / "a.npy", array)
    refused(tmp_path / "a.npy")


def test_an_npy_of_objects_or_an_archive_is_refused(tmp_path):
    np.save(tmp_path / "a.npy", np.array([[{}]], dtype=object), allow_pickle=True)
    refused(tmp_path / "a.npy")
    with (tmp_path / "b.npy").open("wb") as handle:
        np.savez(handle, a=RGB)
    refused(tmp_path / "b.npy")


def test_an_npy_that_claims_more_than_it_holds_is_refused_at_once(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((3, 3), np.uint8))
    data = (tmp_path / "a.npy").read_bytes().replace(b"(3, 3), }" + b" " * 12, b"(999999999, 99999), }")
    assert b"999999999" in data
    (tmp_path / "a.npy").write_bytes(data)
    refused(tmp_path / "a.npy")


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "npy"])
def test_an_image_larger_than_the_reader_has_room_for_is_refused_before_that_room_is_taken(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    np.save(path, RGB) if suffix == "npy" else Image.fromarray(RGB).save(path)
    needed = RGB.size if suffix == "npy" else 4 * 11 * 7  # a picture may have four bands until it is decoded
    assert read_image(path, needed).shape == RGB.shape
    with pytest.raises(HighwallError, match="too large to read at once"):
        read_image(path, needed - 1)


# --- damage ---------------------------------------------------------------------------------------------


def test_missing_empty_folder_and_foreign_files_are_named(tmp_path):
    assert "does not exist" in refused(tmp_path / "no.png")
    assert "cannot read" in refused(tmp_path)
    for name in ("a.png", "a.npy", "a.tif"):
        (tmp_path / name).write_bytes(b"")
        assert "is empty" in refused(tmp_path / name)
        (tmp_path / name).write_bytes(b"this is a text")
        refused(tmp_path / name)
    Image.fromarray(RGB).save(tmp_path / "a.gif")
    assert "no PNG, JPEG, TIFF or npy" in refused(tmp_path / "a.gif")


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif", "a.npy", "deep.tif"])
@pytest.mark.parametrize("tenth", range(1, 9))
def test_a_truncated_image_is_refused(tmp_path, name, tenth):
    path = tmp_path / name
    noise = np.random.RandomState(4).randint(0, 256, (64, 48, 3), np.uint8)
    if name == "a.npy":
        np.save(path, noise)
    elif name == "deep.tif":
        write_tiff(path, np.moveaxis(noise, -1, 0).astype(np.uint16))
    else:
        Image.fromarray(noise).save(path)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * tenth // 10])
    refused(path)


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "npy"])
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32))
def test_a_damaged_image_is_read_or_refused_never_a_crash(tmp_path, suffix, seed):
    path = tmp_path / f"a.{suffix}"
    if suffix == "npy":
        np.save(path, RGB)
    else:
        Image.fromarray(RGB).save(path)
    data, chance = bytearray(path.read_bytes()), random.Random(seed)
    for _ in range(chance.randint(1, 6)):
        # The header is where a decoder is led astray; half of the damage goes there.
        data[chance.randrange(min(len(data), chance.choice([130, 10**6])))] = chance.randrange(256)
    path.write_bytes(data)
    try:
        assert read_image(path).ndim == 3
    except HighwallError as error:
        assert "\n" not in str(error)


# --- fit ------------------------------------------------------------------------------------------------


def test_the_wrong_number_of_bands_names_the_file_and_both_numbers(tmp_path):
    with pytest.raises(HighwallError, match=r"a\.png has 3 bands where the model takes 13"):
        check_image(RGB, InputSpec(5, 5, 13, "uint8"), tmp_path / "a.png")


@pytest.mark.parametrize(("have", "want"), [("uint8", "uint16"), ("uint16", "uint8")])
def test_pictures_of_another_depth_are_refused_not_cast(tmp_path, have, want):
    with pytest.raises(HighwallError, match=f"is {have} where the model takes {want}"):
        check_image(RGB.astype(have), InputSpec(5, 5, 3, want), tmp_path / "a.png")


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int32, np.uint32, np.int64])
def test_whole_numbers_in_range_are_taken_in_the_models_dtype(tmp_path, dtype):
    for want in ("uint8", "uint16"):
        found = check_image(RGB.astype(dtype), InputSpec(5, 5, 3, want), tmp_path / "a.npy")
        assert found.dtype == want
        np.testing.assert_array_equal(found, RGB)


@pytest.mark.parametrize(
    ("value", "want"), [(0.5, "uint8"), (-1, "uint8"), (256, "uint8"), (65536, "uint16"), (-0.1, "uint16")]
)
def test_other_numbers_name_the_dtype_that_is_wanted(tmp_path, value, want):
    image = np.zeros((3, 3, 1))
    image[1, 2, 0] = value
    with pytest.raises(HighwallError, match=f"is float64 from .* where the model takes {want}"):
        check_image(image, InputSpec(5, 5, 1, want), tmp_path / "a.npy")
