"""Which tags belong to this gateway, by the barcode on them: those of its own file, and those paired since."""

from pathlib import Path
from typing import Annotated

import msgspec

from targets.runtime.errors import HighwallError
from twin_client.protocol.orders import Name
from twin_client.services import folder as disk


class Tag(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is known of a paired tag."""

    type: Annotated[str, msgspec.Meta(max_length=64)] = ""  # such as extensometer; `person` and `machine` move
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
            raise HighwallError(f"the tag {name} is not paired; paired are {', '.join(sorted(self.tags)) or 'none'}")
        left = {each: tag for each, tag in self._pairs.tags.items() if each != name}
        gone = (*self._pairs.gone, name) if name in self._own and name not in self._pairs.gone else self._pairs.gone
        self._save(_Pairs(left, gone))

    def _save(self, pairs: _Pairs) -> None:
        disk.save_state(self._file, pairs)
        self._pairs = pairs
