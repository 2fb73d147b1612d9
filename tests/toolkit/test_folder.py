"""Every layout a user may have is read, and every fault in it is one line that names the file."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from targets.runtime.errors import HighwallError
from toolkit.data import folder
from toolkit.data.samples import Samples, Unlabelled

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"


def write_chips(path: Path, count: int = 6, **arrays: np.ndarray) -> Path:
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (count, 5, 7, 3), dtype=np.uint8)
    y = (np.arange(count) % 2).astype(np.uint8)
    np.savez(path / "chips.npz", **({"x": x, "y": y} | arrays))
    return path


def write_table(path: Path, *rows: str) -> None:
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, pixels)
    else:
        Image.fromarray(pixels).save(path)


def picture(value: int, height: int = 5, width: int = 7) -> np.ndarray:
    return np.full((height, width, 3), value, dtype=np.uint8)


def write_classes(path: Path, *names: str) -> Path:
    for i, name in enumerate(names):
        save(path / name / "b.png", picture(10 + i))
        save(path / name / "a.tif", picture(20 + i))
    return path


def write_pairs(path: Path, names: tuple[str, ...] = ("p", "q", "r")) -> Path:
    for i, name in enumerate(names):
        save(path / "images" / f"{name}.png", picture(30 + i))
        mask = np.zeros((5, 7), dtype=np.uint8)
        mask[i, 2:4] = 255
        save(path / "masks" / f"{name}.png", mask)
    return path


def refused(path: Path, says: str, read: Callable[[Path], object] = folder.read) -> None:
    with pytest.raises(HighwallError, match=says) as caught:
        read(path)
    assert "\n" not in str(caught.value)


def test_chips_alone_have_neither_folds_nor_groups(tmp_path: Path) -> None:
    samples = folder.read(write_chips(tmp_path))
    assert samples.task == "classify" and samples.size == (5, 7)
    assert samples.labels.tolist() == [0, 1, 0, 1, 0, 1]
    assert samples.folds is None and samples.groups is None
    assert samples.class_names == ("no mine", "mine")


def test_rows_are_matched_by_chip_not_by_their_order(tmp_path: Path) -> None:
    write_chips(tmp_path, 3)
    write_table(tmp_path / "index.csv", "chip,label,source,lon", "2,0,c,", "0,0,a,", "1,1,b,4.5")
    write_table(tmp_path / "folds.csv", "fold,chip", "9,1", "8,2", "7,0")
    samples = folder.read(tmp_path)
    assert samples.groups is not None and samples.groups.tolist() == ["a", "b", "c"]
    assert samples.folds is not None and samples.folds.tolist() == [7, 9, 8]
    assert "index.csv, folds.csv" in samples.describe()


def test_big_endian_uint16_chips_are_read_by_value(tmp_path: Path) -> None:
    x = np.arange(2 * 3 * 3 * 13, dtype=">u2").reshape(2, 3, 3, 13)
    samples = folder.read(write_chips(tmp_path, 2, x=x))
    assert samples.images.dtype == np.uint16 and samples.images[0, 0, 1, 0] == 13


@pytest.mark.parametrize(
    ("names", "positive", "why"),
    [
        (("no mine", "mine"), "mine", "name says so"),
        (("mine", "other"), "mine", "name says so"),
        (("crack", "no_crack"), "crack", "name says so"),
        (("cracked", "uncracked"), "cracked", "name says so"),
        (("Crack", "notcrack"), "Crack", "name says so"),
        (("crack", "crack-free"), "crack", "name says so"),
        (("0", "1"), "1", "name says so"),
        (("negative", "positive"), "positive", "name says so"),
        (("north mine", "plain"), "north mine", "name says so"),
        (("yes", "no"), "yes", "name says so"),
        (("apples", "pears"), "pears", "alphabetically second"),
        (("mine a", "mine b"), "mine b", "alphabetically second"),
    ],
)
def test_the_positive_class_is_found_by_name_and_said(
    tmp_path: Path, names: tuple[str, str], positive: str, why: str
) -> None:
    samples = folder.read(write_classes(tmp_path, *names))
    assert samples.class_names[1] == positive
    assert {name.split("/")[0] for name, label in zip(samples.names, samples.labels, strict=True) if label} == {
        positive
    }
    assert f"'{positive}' is positive" in samples.describe() and why in samples.describe()


def test_class_folders_hold_every_kind_of_image(tmp_path: Path) -> None:
    save(tmp_path / "mine" / "a.npy", picture(1))
    save(tmp_path / "mine" / "b.JPG", picture(2))
    save(tmp_path / "none" / "c.tiff", picture(3))
    save(tmp_path / "none" / ".hidden.png", picture(3, 9, 9))
    (tmp_path / "none" / "notes.txt").write_text("not an image")
    samples = folder.read(tmp_path)
    assert samples.names == ("none/c.tiff", "mine/a.npy", "mine/b.JPG")
    assert samples.labels.tolist() == [0, 1, 1]


def test_masks_are_matched_by_name_and_white_is_positive(tmp_path: Path) -> None:
    write_pairs(tmp_path)
    write_table(tmp_path / "groups.csv", "image,group", "q,1", "p,0", "r,1")
    write_table(tmp_path / "folds.csv", "image,fold", "r,2", "p,0", "q,1")
    samples = folder.read(tmp_path)
    assert samples.task == "segment" and samples.names == ("p", "q", "r")
    assert np.argwhere(samples.labels).tolist() == [[0, 0, 2], [0, 0, 3], [1, 1, 2], [1, 1, 3], [2, 2, 2], [2, 2, 3]]
    assert samples.groups is not None and samples.groups.tolist() == ["0", "1", "1"]
    assert samples.folds is not None and samples.folds.tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    "mask",
    [
        np.eye(5, 7, dtype=np.uint8),
        np.eye(5, 7, dtype=np.uint8) * 255,
        np.eye(5, 7, dtype=np.uint8)[:, :, None].repeat(3, 2) * 255,
        np.eye(5, 7, dtype=np.uint16) * 65535,
        np.eye(5, 7, dtype=np.float32),
        np.where(np.eye(5, 7) > 0, 200, 90).astype(np.uint8),
    ],
    ids=["0-1", "0-255", "rgb", "uint16", "float", "greys"],
)
def test_masks_of_every_usual_kind_mean_the_same(tmp_path: Path, mask: np.ndarray) -> None:
    write_pairs(tmp_path)
    (tmp_path / "masks" / "p.png").unlink()
    save(tmp_path / "masks" / "p.npy", mask)
    assert np.array_equal(folder.read(tmp_path).labels[0], np.eye(5, 7))


def test_a_one_bit_mask_is_read(tmp_path: Path) -> None:
    write_pairs(tmp_path)
    Image.fromarray(np.eye(5, 7) > 0).save(tmp_path / "masks" / "p.png")
    assert np.array_equal(folder.read(tmp_path).labels[0], np.eye(5, 7))


def test_the_digest_does_not_depend_on_the_folder_name(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_pairs(tmp_path / name)
    assert folder.read(tmp_path / "one").digest == folder.read(tmp_path / "two").digest


def test_images_without_labels_can_calibrate_but_not_train(tmp_path: Path) -> None:
    save(tmp_path / "b.png", picture(2))
    save(tmp_path / "a.npy", picture(1))
    images, names = folder.read_images(tmp_path)
    assert names == ("a.npy", "b.png") and images[:, 0, 0, 0].tolist() == [1, 2]
    found = folder.read_any(tmp_path)
    assert isinstance(found, Unlabelled) and len(found.digest) == 64
    refused(tmp_path, "no labels")


def test_read_any_gives_labels_where_there_are_any(tmp_path: Path) -> None:
    write_chips(tmp_path)
    assert isinstance(folder.read_any(tmp_path), Samples)
    np.savez(tmp_path / "chips.npz", x=np.zeros((2, 3, 3, 1), dtype=np.uint8))
    assert isinstance(folder.read_any(tmp_path), Unlabelled)
    refused(tmp_path, "no y")


@pytest.mark.parametrize("write", [write_chips, write_pairs, lambda path: write_classes(path, "a", "b")])
def test_images_of_a_labelled_folder_can_be_had_alone(tmp_path: Path, write: Callable[[Path], Path]) -> None:
    write(tmp_path)
    images, names = folder.read_images(tmp_path)
    assert len(images) == len(names) == len(folder.read(tmp_path))


def test_damaged_labels_are_not_taken_for_no_labels(tmp_path: Path) -> None:
    write_chips(tmp_path, y=np.array([0, 1, 2, 0, 1, 0]))
    refused(tmp_path, "not 0 or 1", folder.read_any)


def test_a_missing_folder_a_file_and_an_empty_folder_are_refused(tmp_path: Path) -> None:
    refused(tmp_path / "gone", "no folder")
    refused(tmp_path, "is empty")
    (tmp_path / "file").write_text("x")
    refused(tmp_path / "file", "is a file")
    refused(tmp_path, "holds file.*expected chips.npz")


def test_three_class_folders_are_no_layout(tmp_path: Path) -> None:
    refused(write_classes(tmp_path, "a", "b", "c"), "no layout known")


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"y": np.zeros(6, dtype=np.uint8)}, "one class only: no positive"),
        ({"y": np.ones(6, dtype=np.uint8)}, "one class only: all 6"),
        ({"y": np.array([0, 1, 2, 3, 0, 1])}, "2 labels that are not 0 or 1"),
        ({"y": np.array([0, 1, np.nan, 1, 0, 1])}, "1 labels that are not 0 or 1, such as nan"),
        ({"y": np.zeros(5, dtype=np.uint8)}, r"shape \[5\] for 6 chips"),
        ({"x": np.zeros((6, 5, 7), dtype=np.uint8)}, "N,H,W,C"),
        ({"x": np.zeros((0, 5, 7, 3), dtype=np.uint8)}, "nothing empty"),
        ({"x": np.full((6, 5, 7, 3), np.nan)}, "630 NaN"),
        ({"x": np.ones((6, 5, 7, 3))}, "float64 pixels; expected uint8"),
        ({"x": np.ones((6, 5, 7, 3), dtype=np.int32)}, "int32 pixels"),
        ({"x": np.array([None] * 6)}, "cannot read"),
    ],
)
def test_chips_that_are_wrong_are_refused(tmp_path: Path, arrays: dict, says: str) -> None:
    refused(write_chips(tmp_path, **arrays), says)


@pytest.mark.parametrize("keep", [0, 1, 30, -40])
def test_a_truncated_archive_is_refused(tmp_path: Path, keep: int) -> None:
    path = write_chips(tmp_path) / "chips.npz"
    path.write_bytes(path.read_bytes()[:keep])
    refused(tmp_path, "cannot read .*chips.npz")


def test_any_flipped_byte_is_read_or_refused_but_never_crashes(tmp_path: Path) -> None:
    path = write_chips(tmp_path, 2, x=np.zeros((2, 3, 3, 1), dtype=np.uint8)) / "chips.npz"
    whole = path.read_bytes()
    for at in range(0, len(whole), 7):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x55]) + whole[at + 1 :])
        try:
            folder.read(tmp_path)
        except HighwallError as error:
            assert "\n" not in str(error)


@pytest.mark.parametrize(
    ("name", "rows", "says"),
    [
        ("index.csv", ["chip,label", "0,0", "1,1"], "2 rows for 3 samples: 1 samples without a row"),
        ("index.csv", ["chip,label", "0,0", "1,0", "2,1"], "disagree on 2 labels"),
        ("index.csv", ["chip,label", "0,0", "1,x", "2,0"], "label 'x' is not a whole number"),
        ("index.csv", ["number,label", "0,0", "1,1", "2,0"], "no column 'chip'"),
        ("folds.csv", ["chip,fold", "0,0", "1,1", "2,0", "3,1"], "1 rows without a sample"),
        ("folds.csv", ["chip,fold", "0,0", "1,1", "1,1", "2,0"], "1 doubled"),
        ("folds.csv", ["chip,fold", "0,0", "1", "2,0"], "fold '' is not a whole number"),
        ("folds.csv", ["chip,fold", "0,0", "1,99999999999999999999", "2,0"], "not a whole number"),
        ("folds.csv", ["chip,part", "0,0", "1,1", "2,0"], "no column 'fold'"),
        ("folds.csv", ["chip,fold"], "3 samples without a row"),
        ("folds.csv", ["chip,fold", '0,"0', "1,1", "2,0"], "cannot read"),
    ],
)
def test_tables_that_do_not_match_are_refused(tmp_path: Path, name: str, rows: list[str], says: str) -> None:
    write_chips(tmp_path, 3)
    write_table(tmp_path / name, *rows)
    refused(tmp_path, says)


def test_a_table_that_is_no_text_is_refused(tmp_path: Path) -> None:
    write_chips(tmp_path, 3)
    (tmp_path / "folds.csv").write_bytes(b"\xff\xfe\x00chip,fold\n")
    refused(tmp_path, "folds.csv")


def test_one_class_folder_and_an_empty_class_folder_are_one_class_only(tmp_path: Path) -> None:
    write_classes(tmp_path, "mine")
    refused(tmp_path, "one class only")
    (tmp_path / "no mine").mkdir()
    refused(tmp_path, "one class only.*no mine")


def test_images_of_two_sizes_are_refused_naming_both(tmp_path: Path) -> None:
    write_classes(tmp_path, "a", "b")
    save(tmp_path / "b" / "odd.png", picture(0, 6, 7))
    refused(tmp_path, r"a\.tif is 5x7 px.*odd\.png is 6x7 px")


def test_a_grey_image_among_colour_ones_is_refused_naming_both(tmp_path: Path) -> None:
    write_classes(tmp_path, "a", "b")
    save(tmp_path / "b" / "grey.png", picture(0)[:, :, 0])
    refused(tmp_path, "3 bands.*grey.png is 5x7 px of 1 bands")


def test_an_unreadable_image_is_refused_by_name(tmp_path: Path) -> None:
    write_classes(tmp_path, "a", "b")
    (tmp_path / "b" / "bad.png").write_bytes(b"not a png")
    refused(tmp_path, r"bad\.png")


def test_nan_pixels_are_counted_and_named(tmp_path: Path) -> None:
    write_classes(tmp_path, "a", "b")
    pixels = picture(1).astype(np.float32)
    pixels[0, :2] = np.nan
    save(tmp_path / "b" / "bad.npy", pixels)
    refused(tmp_path, r"bad\.npy has 6 NaN")


def test_a_mask_of_another_size_names_the_pair(tmp_path: Path) -> None:
    write_pairs(tmp_path)
    save(tmp_path / "masks" / "q.png", np.zeros((7, 5), dtype=np.uint8))
    refused(tmp_path, r"masks/q\.png is 7x5 px.*images/q\.png is 5x7")


def test_a_missing_mask_and_a_spare_one_are_refused_by_name(tmp_path: Path) -> None:
    write_pairs(tmp_path)
    (tmp_path / "masks" / "r.png").rename(tmp_path / "masks" / "s.png")
    refused(tmp_path, r"1 images have no mask, such as .*r\.png")
    (tmp_path / "images" / "r.png").unlink()
    refused(tmp_path, r"1 masks have no image, such as .*s\.png")


def test_two_images_of_one_name_are_refused(tmp_path: Path) -> None:
    write_pairs(tmp_path)
    save(tmp_path / "images" / "p.jpg", picture(0))
    refused(tmp_path, r"p\.jpg and .*p\.png")


def test_class_numbers_in_a_mask_are_refused(tmp_path: Path) -> None:
    write_pairs(tmp_path)
    save(tmp_path / "masks" / "q.png", np.eye(5, 7, dtype=np.uint8) * 2)
    refused(tmp_path, r"q\.png has values up to 2")


def test_masks_without_any_white_are_one_class_only(tmp_path: Path) -> None:
    write_pairs(tmp_path)
    for path in (tmp_path / "masks").iterdir():
        save(path, np.zeros((5, 7), dtype=np.uint8))
    refused(tmp_path, "one class only")


@pytest.mark.skipif(not SHARED.is_dir(), reason="the real data (../shared/data) is not here")
def test_the_real_chips_are_read_as_their_readme_says() -> None:
    samples = folder.read(SHARED / "mine_chips")
    assert len(samples) == 10144 and samples.size == (48, 48) and samples.labels.sum() == 3154
    assert samples.folds is not None and set(samples.folds.tolist()) == set(range(5))
    assert samples.groups is not None
    for source in np.unique(samples.groups):
        assert len(np.unique(samples.labels[samples.groups == source])) == 1


@pytest.mark.skipif(not SHARED.is_dir(), reason="the real data (../shared/data) is not here")
def test_the_real_cracks_are_read_as_their_readme_says() -> None:
    samples = folder.read(SHARED / "cracks")
    assert len(samples) == 245 and samples.size == (448, 448)
    assert 0.012 < samples.labels.mean() < 0.014
