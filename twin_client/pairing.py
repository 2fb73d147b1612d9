"""Which tags belong to this gateway, by the barcode on them: those of its own file, and those paired since."""

from pathlib import Path
from typing import Annotated, Final

import msgspec

from targets.runtime.errors import HighwallError, plain
from twin_client.protocol.orders import Name
from twin_client.services import folder as disk

WORN: Final = ("person", "machine")  # types whose motion is judged; all others are for people to read


def misspelt(kind: str) -> str:
    """What is wrong with a tag's type; empty: nothing. Any word will do, but of a `Person` nobody would see a fall."""
    meant = kind.strip().lower()
    return f"a tag's type is {meant}, not {kind!a:.80}" if meant in WORN and kind != meant else ""


class Tag(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is known of a paired tag."""

    type: Annotated[str, msgspec.Meta(max_length=64)] = ""  # one of WORN, or any other, such as extensometer
    note: Annotated[str, msgspec.Meta(max_length=200)] = ""


class _Pairs(msgspec.Struct, frozen=True):
    tags: dict[Name, Tag] = {}
    gone: tuple[Name, ...] = ()  # of the gateway's own file, unpaired since


class Pairing:
    """The pairs in `folder`, laid over `own`, those of the gateway's own file. Another process may change them too."""

    def __init__(self, folder: Path, own: dict[str, Tag]):
        self._file, self._own = Path(folder) / "tags.json", own
        self._read: tuple[int, int] | None = None
        self._pairs = _Pairs()
        self.look()

    def look(self) -> bool:
        """Read what another process has written; whether anything is new."""
        try:
            found = self._file.stat()
        except OSError:
            return False
        seen = found.st_mtime_ns, found.st_ino
        if seen == self._read:
            return False
        self._read = seen
        before, self._pairs = self._pairs, disk.load_state(self._file, _Pairs) or _Pairs()
        return before != self._pairs

    @property
    def tags(self) -> dict[str, Tag]:
        """All that are paired."""
        own = {name: tag for name, tag in self._own.items() if name not in self._pairs.gone}
        return {**own, **self._pairs.tags}

    def pair(self, name: str, tag: Tag) -> None:
        """Take records of this tag from now on. Raises HighwallError where the disk refuses."""
        self.look()
        gone = tuple(each for each in self._pairs.gone if each != name)
        self._save(_Pairs({**self._pairs.tags, name: tag}, gone))

    def unpair(self, name: str) -> None:
        """Take no more records of this tag. Raises HighwallError where it is not paired."""
        self.look()
        if name not in self.tags:
            known = ", ".join(sorted(self.tags)) or "none"
            raise HighwallError(f"the tag {plain(name, 80)} is not paired; paired are {known}")
        left = {each: tag for each, tag in self._pairs.tags.items() if each != name}
        gone = (*self._pairs.gone, name) if name in self._own and name not in self._pairs.gone else self._pairs.gone
        self._save(_Pairs(left, gone))

    def _save(self, pairs: _Pairs) -> None:
        disk.save_state(self._file, pairs)
        self._pairs = pairs
