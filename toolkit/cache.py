"""A cache of compiled candidates, so that a build with one changed limit does not compile them all again.

Under $XDG_CACHE_HOME/highwall (or ~/.cache/highwall), one file a candidate, named by a digest of everything
that decides it. A damaged, missing or unwritable cache costs time and nothing else.
"""

import hashlib
import json
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

from targets.runtime import container
from targets.runtime.errors import HighwallError
from targets.runtime.files import atomic_write

KEPT: Final = 400  # files; the ones unused for longest go first
# What decides a candidate's bytes and figures, files and folders beside one another.
ROOMS: Final = (
    *("toolkit/export", "toolkit/quantize", "toolkit/data", "toolkit/baselines", "targets/runtime"),
    *("toolkit/layers.py", "toolkit/network.py", "toolkit/compiler.py", "toolkit/calibration.py"),
    *("toolkit/checkpoint.py", "toolkit/metrics.py", "toolkit/temperature.py", "toolkit/models.py"),
)


@dataclass(frozen=True)
class Cache:
    """Entries under `folder`; a folder of None keeps nothing."""

    folder: Path | None

    @staticmethod
    def default() -> "Cache":
        home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
        return Cache(Path(home) / "highwall" / "candidates")

    def get(self, key: str) -> dict[str, bytes] | None:
        """The members stored under `key`, or None."""
        if self.folder is None:
            return None
        path = self.folder / key
        try:
            members = container.unpack(path.read_bytes(), str(path))
            os.utime(path)
        except (OSError, HighwallError):
            return None
        return members

    def put(self, key: str, members: dict[str, bytes]) -> None:
        """Store `members`; a full disk or a read-only home is no reason to stop a build."""
        if self.folder is None:
            return
        try:
            with atomic_write(self.folder / key) as partial:
                partial.write_bytes(container.pack(members))
            oldest = sorted(self.folder.iterdir(), key=lambda path: path.stat().st_mtime)
            for path in oldest[: max(0, len(oldest) - KEPT)]:
                path.unlink(missing_ok=True)
        except (OSError, HighwallError):
            return


def key(parts: dict[str, Any]) -> str:
    """A digest of `parts` (JSON values) and of the code that compiles, so that changed code finds nothing."""
    text = json.dumps({"code": _code(), **parts}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


@cache
def _code() -> str:
    here, sha = Path(__file__).parent.parent, hashlib.sha256()
    for room in ROOMS:
        for path in sorted((here / room).rglob("*.py") if (here / room).is_dir() else [here / room]):
            if path.name != "commands.py":
                sha.update(path.name.encode() + path.read_bytes())
    return sha.hexdigest()
