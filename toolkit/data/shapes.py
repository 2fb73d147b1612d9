"""Polygons from a shapefile or GeoJSON, in the coordinates of a scene (extra `geo`)."""

import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from targets.runtime.errors import HighwallError

Geometry = dict[str, Any]  # a GeoJSON geometry

_POLYGONS = ("Polygon", "MultiPolygon")


def require_geo() -> None:
    """Raises HighwallError, naming the extra, where rasterio or pyshp is not installed."""
    try:
        import rasterio  # noqa: F401
        import shapefile  # noqa: F401
    except ImportError as error:
        raise HighwallError(
            f"georeferenced scenes need {error.name or 'rasterio'}; pip install 'highwall[geo]'"
        ) from error


def read_polygons(path: Path, crs: Any) -> list[Geometry]:
    """The polygons of a .shp (with its .prj) or GeoJSON file, reprojected to `crs` (a rasterio CRS).

    GeoJSON is in longitude and latitude (CRS84) unless it names a CRS. Raises HighwallError for a missing or
    damaged file, an unknown format, no CRS, or no polygon.
    """
    path = Path(path)
    if not path.is_file():
        raise HighwallError(f"no file {path}; check the path of the polygons")
    suffix = path.suffix.lower()
    if suffix == ".shp":
        geometries, own = _read_shapefile(path)
    elif suffix in (".geojson", ".json"):
        geometries, own = _read_geojson(path)
    else:
        raise HighwallError(f"{path} is of an unknown format; expected a shapefile (.shp) or .geojson")
    polygons = [geometry for geometry in geometries if geometry.get("type") in _POLYGONS]
    if not polygons:
        kinds = ", ".join(sorted({str(geometry.get("type")) for geometry in geometries})) or "nothing"
        raise HighwallError(f"{path} has no polygon (it holds {kinds}); outline the mines as polygons")
    return [_reproject(polygon, own, crs, path) for polygon in polygons]


def _read_shapefile(path: Path) -> tuple[list[Geometry], Any]:
    import shapefile

    prj = next((p for p in (path.with_suffix(".prj"), path.with_suffix(".PRJ")) if p.is_file()), None)
    if prj is None:
        raise HighwallError(f"{path} has no .prj beside it, so its CRS is unknown; add {path.stem}.prj")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what pyshp suspects of a header is no news once it was read
            with path.open("rb") as shp, shapefile.Reader(shp=shp) as reader:
                geometries = [dict(s.__geo_interface__) for s in reader.iterShapes() if s.shapeType]
    except Exception as error:  # a decoder fed foreign bytes may raise anything
        raise HighwallError(f"cannot read {path}: {_line(error)}; export it again") from error
    try:
        return geometries, _crs(prj.read_text(encoding="utf-8").strip(), prj)
    except (OSError, UnicodeDecodeError) as error:
        raise HighwallError(f"cannot read {prj}: {_line(error)}; export it again") from error


def _read_geojson(path: Path) -> tuple[list[Geometry], Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise HighwallError(f"cannot read {path}: {_line(error)}; expected GeoJSON in UTF-8") from error
    if not isinstance(document, dict):
        raise HighwallError(f"{path} is not GeoJSON; expected a FeatureCollection of polygons")
    named = document.get("crs")
    properties = named.get("properties") if isinstance(named, dict) else None
    name = properties.get("name") if isinstance(properties, dict) else None
    return list(_geometries(document)), _crs(str(name or "OGC:CRS84"), path)


def _geometries(node: object) -> Iterator[Geometry]:
    """Every geometry in a GeoJSON object, however it is wrapped."""
    if not isinstance(node, dict):
        return
    for wrapper in ("features", "geometries"):
        for child in node[wrapper] if isinstance(node.get(wrapper), list) else ():
            yield from _geometries(child)
    if node.get("type") == "Feature":
        yield from _geometries(node.get("geometry"))
    elif "coordinates" in node:
        yield node


def _crs(text: str, path: Path) -> Any:
    from rasterio.crs import CRS
    from rasterio.errors import CRSError

    try:
        # Shapefiles say their CRS in Esri's dialect, which names some projections differently.
        return CRS.from_wkt(text, morph_from_esri_dialect=True) if "[" in text else CRS.from_user_input(text)
    except CRSError as error:
        raise HighwallError(f"{path} names a CRS that is not known: {_line(error)}; mend it") from error


def _reproject(polygon: Geometry, own: Any, crs: Any, path: Path) -> Geometry:
    import numpy as np
    from rasterio._err import CPLE_BaseError  # GDAL's own errors, which rasterio lets through here
    from rasterio.errors import RasterioError
    from rasterio.warp import transform_geom

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            moved: Geometry = transform_geom(own, crs, polygon)
            parts = [moved["coordinates"]] if moved["type"] == "Polygon" else moved["coordinates"]
            rings = [np.array(ring, dtype=np.float64) for part in parts for ring in part]
    except (RasterioError, CPLE_BaseError, ValueError, TypeError, LookupError, AttributeError) as error:
        raise HighwallError(f"{path} has a polygon that cannot be used: {_line(error)}; mend it") from error
    if not rings or not all(np.isfinite(ring).all() for ring in rings):
        raise HighwallError(f"{path} has a polygon that cannot be reprojected to {crs}; check its coordinates")
    return moved


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
