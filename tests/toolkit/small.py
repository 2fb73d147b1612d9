"""A training run small enough for a test."""

from pathlib import Path

from toolkit.runs import Request


def small_request(out: Path, **changes: object) -> Request:
    """A run of seconds: 24 px slices, a narrow network."""
    settings: dict[str, object] = {"width": 8, "growth": 4, "slice_size": 24, "epochs": 2, "batch": 16}
    return Request("classify", out, **(settings | changes))  # type: ignore[arg-type]
