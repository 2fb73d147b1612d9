"""Small files that must survive a power cut: written whole, synced with their folder, and set aside when damaged."""

import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import msgspec

from targets.runtime.errors import HighwallError
from targets.runtime.files import atomic_write

T = TypeVar("T")


def save(path: Path, content: bytes, mode: int = 0o644) -> None:
    """Replace `path` by `content`, whole or not at all, on the disk when this returns. Raises HighwallError."""
    with atomic_write(path) as partial:
        partial.touch(mode)  # before there is anything to read in it
        partial.write_bytes(content)
    sync_folder(path.parent)


def save_state(path: Path, state: msgspec.Struct, mode: int = 0o644) -> None:
    """Write a struct as JSON that a person can read."""
    save(path, msgspec.json.format(msgspec.json.encode(state), indent=2) + b"\n", mode)


def load_state(path: Path, kind: type[T]) -> T | None:
    """The struct that `save_state` wrote; None where there is no file.

    A damaged file is set aside as NAME.damaged, and None: a gateway must start without somebody driving out to it.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except FileNotFoundError:
        return None
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, ValueError):
        with suppress(OSError):
            path.replace(path.with_name(f"{path.name}.damaged"))
        return None
    except OSError as error:
        raise HighwallError(f"cannot read {path}: {error.strerror or error}") from error


def point(link: Path, target: str) -> None:
    """Make `link` a symbolic link to `target` beside it, in one step from whatever it was before."""
    fresh = link.with_name(f".{link.name}.new")
    with suppress(FileNotFoundError):
        fresh.unlink()
    fresh.symlink_to(target)
    fresh.replace(link)
    sync_folder(link.parent)


def remove(path: Path) -> None:
    """Remove a file or a folder with all in it, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Put the names in `folder` on the disk; without it a power cut may undo a rename."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
