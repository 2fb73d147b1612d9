"""Slices cut from a real GeoTIFF are whole, balanced, labelled by their centre, and never leak across blocks."""

import argparse
import builtins
import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from targets.runtime.errors import HighwallError
from toolkit import commands
from toolkit.data import folder
from toolkit.data.slices import blocks, corners_in, cut_slices, deal_folds, share_out

rasterio = pytest.importorskip("rasterio", reason="needs the geo extra")
shapefile = pytest.importorskip("shapefile", reason="needs the geo extra")

WEST, NORTH, PIXEL = 500000.0, 5100000.0, 10.0
UTM = "EPSG:32633"


def write_scene(path: Path, height: int = 97, width: int = 131, bands: int = 4, **options: object) -> np.ndarray:
    """A scene whose pixels say where they are: band 0 is the row, band 1 the column."""
    rows, columns = np.mgrid[:height, :width]
    pixels = np.stack([rows, columns, *[rows * 0 + 7] * (bands - 2)]).astype(options.pop("dtype", "uint16"))
    for row, column in options.pop("holes", []):
        pixels[-1, row, column] = 0
    profile = {
        "driver": "GTiff",
        "height": height,
        "width": width,
        "count": bands,
        "dtype": pixels.dtype,
        "crs": UTM,
        "transform": rasterio.transform.from_origin(WEST, NORTH, PIXEL, PIXEL),
    }
    with rasterio.open(path, "w", **(profile | options)) as dataset:
        dataset.write(pixels)
    return pixels


def ring(top: float, left: float, bottom: float, right: float) -> list[list[float]]:
    """A rectangle in pixels of the scene, as a clockwise ring in its coordinates."""
    corners = [(left, top), (right, top), (right, bottom), (left, bottom), (left, top)]
    return [[WEST + PIXEL * x, NORTH - PIXEL * y] for x, y in corners]


def write_shapes(path: Path, *rings: list[list[float]], crs: str = UTM) -> Path:
    with shapefile.Writer(str(path), shapeType=shapefile.POLYGON) as writer:
        writer.field("name", "C")
        for part in rings:
            writer.poly([part])
            writer.record("pit")
    path.with_suffix(".prj").write_text(rasterio.crs.CRS.from_user_input(crs).to_wkt(version="WKT1_ESRI"))
    return path


def write_geojson(path: Path, *rings: list[list[float]], to: str = "OGC:CRS84", named: str | None = None) -> Path:
    moved = [
        rasterio.warp.transform_geom(UTM, to, {"type": "Polygon", "coordinates": [part]}, precision=9) for part in rings
    ]
    document: dict = {
        "type": "FeatureCollection",
        "features": [{"type": "Feature", "properties": {}, "geometry": geometry} for geometry in moved],
    }
    if named:
        document["crs"] = {"type": "name", "properties": {"name": named}}
    path.write_text(json.dumps(document))
    return path


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as handle:
        return list(csv.DictReader(handle))


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    write_scene(tmp_path / "scene.tif")
    return tmp_path / "scene.tif"


@pytest.fixture
def shapes(tmp_path: Path) -> Path:
    return write_shapes(tmp_path / "pits.shp", ring(10, 15, 50, 60), ring(60, 80, 90, 120))


@pytest.mark.parametrize("size", [1, 6, 7])
def test_every_slice_is_where_it_says_and_labelled_by_its_centre(
    scene: Path, shapes: Path, tmp_path: Path, size: int
) -> None:
    cut_slices(scene, shapes, tmp_path / "out", size=size, count=60)
    samples = folder.read(tmp_path / "out")
    assert samples.images.shape == (60, size, size, 4) and samples.images.dtype == np.uint16
    for chip, row in zip(samples.images, table(tmp_path / "out" / "index.csv"), strict=True):
        r, c = int(row["row"]), int(row["col"])
        assert (chip[size // 2, size // 2, :2] == (r, c)).all()
        assert (chip[0, 0, :2] == (r - size // 2, c - size // 2)).all()
        inside = (10 <= r < 50 and 15 <= c < 60) or (60 <= r < 90 and 80 <= c < 120)
        assert int(row["label"]) == inside


def test_slices_are_balanced_and_none_is_cut_twice(scene: Path, shapes: Path, tmp_path: Path) -> None:
    samples = cut_slices(scene, shapes, tmp_path / "out", size=5)
    assert samples.labels.mean() == 0.5 and len(samples) > 500
    rows = table(tmp_path / "out" / "index.csv")
    assert len({(row["row"], row["col"]) for row in rows}) == len(rows)


def test_slices_of_different_blocks_share_no_pixel_and_blocks_keep_to_one_fold(
    scene: Path, shapes: Path, tmp_path: Path
) -> None:
    samples = cut_slices(scene, shapes, tmp_path / "out", size=6, count=400)
    assert samples.groups is not None and samples.folds is not None
    owner: dict[tuple[int, int], str] = {}
    for chip, block in zip(samples.images, samples.groups.tolist(), strict=True):
        for row, column in chip[:, :, :2].reshape(-1, 2).tolist():
            assert owner.setdefault((row, column), block) == block
    assert len(np.unique(samples.groups)) > 5
    for block in np.unique(samples.groups):
        assert len(np.unique(samples.folds[samples.groups == block])) == 1
    assert set(samples.folds.tolist()) == set(range(5))


def test_every_fold_has_both_labels(scene: Path, shapes: Path, tmp_path: Path) -> None:
    samples = cut_slices(scene, shapes, tmp_path / "out", size=4, count=400)
    assert samples.folds is not None
    for fold in range(5):
        assert 0 < samples.labels[samples.folds == fold].mean() < 1


def test_the_same_seed_cuts_the_same_slices(scene: Path, shapes: Path, tmp_path: Path) -> None:
    first, second, third = (
        cut_slices(scene, shapes, tmp_path / name, size=6, count=40, seed=seed).digest
        for name, seed in (("a", 3), ("b", 3), ("c", 4))
    )
    assert first == second != third


def test_a_slice_with_a_pixel_of_nodata_in_any_band_is_left_out(shapes: Path, tmp_path: Path) -> None:
    holes = [(r, c) for r in range(0, 97, 9) for c in range(0, 131, 11)]
    write_scene(tmp_path / "holes.tif", nodata=0, holes=holes, dtype="uint8", bands=3)
    samples = cut_slices(tmp_path / "holes.tif", shapes, tmp_path / "out", size=5, count=100)
    assert samples.images.dtype == np.uint8
    assert (samples.images > 0).all()


@pytest.mark.parametrize(
    "write",
    [
        lambda path, *rings: write_geojson(path / "p.geojson", *rings),
        lambda path, *rings: write_geojson(path / "p.json", *rings, to=UTM, named="urn:ogc:def:crs:EPSG::32633"),
        lambda path, *rings: write_shapes(path / "p.shp", *rings),
    ],
    ids=["lon-lat", "named-crs", "shapefile"],
)
def test_polygons_of_every_kind_cut_the_same_slices(scene: Path, tmp_path: Path, write: Callable[..., Path]) -> None:
    # Corners a third of a pixel off its middle: a reprojection must not move them across it.
    shapes = write(tmp_path, ring(10.2, 15.2, 50.2, 60.2))
    cut_slices(scene, shapes, tmp_path / "out", size=5, count=80)
    for row in table(tmp_path / "out" / "index.csv"):
        assert int(row["label"]) == (10 <= int(row["row"]) < 50 and 15 <= int(row["col"]) < 60)


def test_a_shapefile_in_another_projection_is_moved_to_the_scene(scene: Path, tmp_path: Path) -> None:
    moved = rasterio.warp.transform_geom(
        UTM, "EPSG:3857", {"type": "Polygon", "coordinates": [ring(10.2, 15.2, 50.2, 60.2)]}
    )
    shapes = write_shapes(tmp_path / "mercator.shp", [list(p) for p in moved["coordinates"][0]], crs="EPSG:3857")
    cut_slices(scene, shapes, tmp_path / "out", size=5, count=80)
    for row in table(tmp_path / "out" / "index.csv"):
        assert int(row["label"]) == (10 <= int(row["row"]) < 50 and 15 <= int(row["col"]) < 60)


def test_longitude_and_latitude_are_those_of_the_centre_pixel(scene: Path, shapes: Path, tmp_path: Path) -> None:
    cut_slices(scene, shapes, tmp_path / "out", size=6, count=10)
    for row in table(tmp_path / "out" / "index.csv"):
        (x,), (y,) = rasterio.warp.transform("OGC:CRS84", UTM, [float(row["lon"])], [float(row["lat"])])
        assert x == pytest.approx(WEST + PIXEL * (int(row["col"]) + 0.5), abs=0.2)
        assert y == pytest.approx(NORTH - PIXEL * (int(row["row"]) + 0.5), abs=0.2)


def test_a_hole_in_a_polygon_is_outside_it(scene: Path, tmp_path: Path) -> None:
    outer, inner = ring(10, 10, 80, 100), ring(30, 30, 60, 70)[::-1]
    document = {"type": "Polygon", "coordinates": [outer, inner], "crs": {"properties": {"name": UTM}}}
    (tmp_path / "hole.geojson").write_text(json.dumps(document))
    cut_slices(scene, tmp_path / "hole.geojson", tmp_path / "out", size=3, count=200)
    rows = table(tmp_path / "out" / "index.csv")
    hole = [row["label"] for row in rows if 30 <= int(row["row"]) < 60 and 30 <= int(row["col"]) < 70]
    assert hole and set(hole) == {"0"}


@pytest.mark.parametrize(("shape", "size"), [((97, 131), 6), ((18, 18), 18), ((37, 5000), 18), ((400, 401), 1)])
def test_blocks_cover_the_scene_once(shape: tuple[int, int], size: int) -> None:
    covered = np.zeros(shape, dtype=int)
    for block in blocks(shape, size):
        assert block.side >= size
        covered[block.window] += 1
    assert (covered == 1).all()


def test_corners_are_all_those_a_plain_search_finds() -> None:
    rng = np.random.default_rng(2)
    inside, usable = rng.random((23, 31)) < 0.4, rng.random((23, 31)) < 0.97
    for block in blocks((23, 31), 4):
        expected: tuple[list, list] = ([], [])
        for row in range(block.row, min(block.row + block.side, 23) - 3):
            for column in range(block.column, min(block.column + block.side, 31) - 3):
                if usable[row : row + 4, column : column + 4].all():
                    expected[int(inside[row + 2, column + 2])].append([row, column])
        found = corners_in(block, inside, usable, 4)
        assert [part.tolist() for part in found] == list(expected)


def test_sharing_out_is_even_within_capacity() -> None:
    rng = np.random.default_rng(0)
    capacity = np.array([1, 0, 50, 7, 50])
    shares = share_out(41, capacity, rng)
    assert shares.sum() == 41 and (shares <= capacity).all()
    assert shares[0] == 1 and shares[3] == 7 and abs(shares[2] - shares[4]) <= 1


def test_folds_are_fewer_where_blocks_are_fewer() -> None:
    folds = deal_folds(np.array(["a", "b", "a", "b"]), np.array([0, 1, 1, 0], dtype=np.uint8))
    assert folds.tolist() == [0, 1, 0, 1]


def refused(scene: Path, shapes: Path, out: Path, says: str, size: int = 6, count: int | None = None) -> None:
    with pytest.raises(HighwallError, match=says) as caught:
        cut_slices(scene, shapes, out, size=size, count=count)
    assert "\n" not in str(caught.value)
    assert not out.exists() or not list(out.glob("*.npz"))


def test_scenes_that_cannot_be_used_are_refused(shapes: Path, tmp_path: Path) -> None:
    out, scene = tmp_path / "out", tmp_path / "s.tif"
    refused(scene, shapes, out, "no file")
    scene.write_bytes(b"II*\0 not a scene")
    refused(scene, shapes, out, "cannot read")
    scene.unlink()
    write_scene(scene, crs=None)
    refused(scene, shapes, out, "no CRS")
    write_scene(scene, dtype="float32")
    refused(scene, shapes, out, "float32 bands; expected uint8")
    write_scene(scene, height=5, width=40)
    refused(scene, shapes, out, "5x40 px, smaller than a slice of 6")
    write_scene(scene, nodata=7)
    refused(scene, shapes, out, "no room for a whole slice")


def test_a_truncated_scene_is_refused(shapes: Path, tmp_path: Path) -> None:
    write_scene(tmp_path / "s.tif")
    whole = (tmp_path / "s.tif").read_bytes()
    (tmp_path / "s.tif").write_bytes(whole[: len(whole) // 2])
    refused(tmp_path / "s.tif", shapes, tmp_path / "out", "cannot read")


def test_polygons_that_cannot_be_used_are_refused(scene: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    refused(scene, tmp_path / "gone.shp", out, "no file")
    (tmp_path / "p.kml").write_text("<kml/>")
    refused(scene, tmp_path / "p.kml", out, "unknown format")
    (tmp_path / "bad.geojson").write_text('{"type": "FeatureColl')
    refused(scene, tmp_path / "bad.geojson", out, "cannot read")
    (tmp_path / "list.geojson").write_text("[1, 2]")
    refused(scene, tmp_path / "list.geojson", out, "not GeoJSON")
    (tmp_path / "point.geojson").write_text('{"type": "Point", "coordinates": [15, 46]}')
    refused(scene, tmp_path / "point.geojson", out, r"no polygon \(it holds Point\)")
    (tmp_path / "empty.geojson").write_text('{"type": "FeatureCollection", "features": []}')
    refused(scene, tmp_path / "empty.geojson", out, r"no polygon \(it holds nothing\)")
    (tmp_path / "odd.geojson").write_text('{"type": "Polygon", "coordinates": [["a", "b"]]}')
    refused(scene, tmp_path / "odd.geojson", out, "odd.geojson has a polygon that cannot be used")
    refused(scene, write_geojson(tmp_path / "c.geojson", ring(1, 1, 9, 9), named="EPSG:1"), out, "CRS that is not")
    refused(scene, write_shapes(tmp_path / "far.shp", ring(900, 900, 950, 950)), out, "outside")


def test_a_shapefile_without_prj_or_damaged_is_refused(scene: Path, shapes: Path, tmp_path: Path) -> None:
    prj = shapes.with_suffix(".prj").read_text()
    shapes.with_suffix(".prj").unlink()
    refused(scene, shapes, tmp_path / "out", "no .prj beside it")
    shapes.with_suffix(".prj").write_text("PROJCS[nonsense]")
    refused(scene, shapes, tmp_path / "out", "CRS that is not known")
    shapes.with_suffix(".prj").write_text(prj)
    shapes.write_bytes(shapes.read_bytes()[:130])
    refused(scene, shapes, tmp_path / "out", "pits.shp")


def test_polygons_over_everything_leave_no_negative(scene: Path, tmp_path: Path) -> None:
    shapes = write_shapes(tmp_path / "all.shp", ring(-9, -9, 500, 500))
    refused(scene, shapes, tmp_path / "out", "outside the polygons")


def test_a_polygon_at_the_rim_has_no_room_for_a_slice_around_it(scene: Path, tmp_path: Path) -> None:
    shapes = write_shapes(tmp_path / "rim.shp", ring(0, 0, 2, 2))
    refused(scene, shapes, tmp_path / "out", "centre in the polygons")


def test_more_slices_than_there_are_is_refused_with_the_number(scene: Path, tmp_path: Path) -> None:
    shapes = write_shapes(tmp_path / "small.shp", ring(20, 20, 21, 22))
    refused(scene, shapes, tmp_path / "out", "only [24] slices", count=100)
    refused(scene, shapes, tmp_path / "out", "even count", count=3)


def test_a_missing_extra_is_named(scene: Path, shapes: Path, tmp_path: Path, monkeypatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: object) -> object:
        if name == "shapefile":
            raise ModuleNotFoundError("No module named 'shapefile'", name="shapefile")
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    refused(scene, shapes, tmp_path / "out", r"need shapefile; pip install 'highwall\[geo\]'")


def parse(verb: str, *words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    getattr(commands, f"{verb}_arguments")(parser)
    return parser.parse_args(words)


def test_the_slices_verb_writes_a_folder_train_can_read(scene: Path, shapes: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "out"
    words = (str(scene), str(shapes), "--size", "8", "--out", str(out), "--count", "20")
    assert commands.slices(parse("slices", *words)) == 0
    assert len(folder.read(out)) == 20
    assert "20 images to classify, 8x8 px, 4 bands, uint16" in capsys.readouterr().out
    with pytest.raises(HighwallError, match="not empty"):
        commands.slices(parse("slices", *words))


@pytest.mark.parametrize(("task", "bands"), [("classify", 3), ("classify", 13), ("segment", 3)])
def test_the_generate_verb_writes_a_folder_train_can_read(task: str, bands: int, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ("--task", task, "--out", str(out), "--count", "6", "--size", "21", "--bands", str(bands))
    assert commands.generate(parse("generate", *words)) == 0
    samples = folder.read(out)
    assert (samples.task, samples.size, samples.bands, len(samples)) == (task, (21, 21), bands, 6)
    with pytest.raises(HighwallError, match="not empty"):
        commands.generate(parse("generate", *words))


def test_photographs_of_thirteen_bands_are_refused(tmp_path: Path) -> None:
    with pytest.raises(HighwallError, match="3 bands, not 13"):
        commands.generate(parse("generate", "--task", "segment", "--out", str(tmp_path / "o"), "--bands", "13"))
