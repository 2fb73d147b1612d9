"""Which numbers of each tag have been heard: tells what is new, what comes late or again, and what is missing.

A number is declared lost as soon as a higher one of the same boot is heard. Should it come after all it is passed on
as late: the twin takes a record that a gap names as found.

What a tag sent last before it started anew, and was never heard, has no higher number after it: nobody but the tag
can know of it.
"""

from array import array
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from twin_client.protocol.records import Lost

WINDOW: Final = 1024  # numbers below the highest for which it is known whether they were heard
BOOTS: Final = 2  # of each tag that are followed: frames of the last boot may still be under way

Reason = Literal["radio", "overrun", "restarted"]
_UNKNOWN: Final = 2**32 - 1  # in place of a digest: heard, but what it said is not remembered


@dataclass(frozen=True)
class Verdict:
    """What the number of a frame means. A `repeated` frame is to be dropped, all others are to be passed on."""

    kind: Literal["new", "late", "repeated", "conflict"]  # conflict: the number of another frame, with other content
    lost: tuple[Lost, ...] = ()  # what this frame shows to be missing; its gap goes before it
    reason: Reason = "radio"


class Heard:
    """The memory of it: 4 kB for each boot of a tag that is followed.

    `marks` are those of `Heard.marks` from before a restart: {tag: (boot, highest number)}.
    """

    def __init__(self, marks: Mapping[str, tuple[int, int]] | None = None) -> None:
        self._tags = {tag: [_Boot(boot, seq, _UNKNOWN)] for tag, (boot, seq) in (marks or {}).items()}
        self._why: dict[str, Reason] = dict.fromkeys(self._tags, "restarted")
        self._overrun = False

    def hear(self, tag: str, boot: int, seq: int, digest: int) -> Verdict:
        """Take note of a frame. `digest`: 32 bits of its content; the same number with another is a conflict."""
        boots = self._tags.setdefault(tag, [])
        why = self._why.get(tag, "restarted")
        if self._overrun:
            why = "overrun"
        for followed in boots:
            if followed.number == boot:
                verdict = followed.hear(tag, seq, digest, why)
                if verdict.kind == "new" and followed is not boots[0]:
                    boots.reverse()
                break
        else:
            # Numbers begin with 0. Of a tag never heard before only the twin may know where its memory of it ends.
            before = (Lost(tag, boot, 0 if boots else None, seq - 1),) if seq else ()
            verdict = Verdict("new", before, why)
            boots.insert(0, _Boot(boot, seq, digest))
            del boots[BOOTS:]
        if verdict.kind == "new":
            self._why[tag] = "radio"
        return verdict

    def begin_overrun(self) -> None:
        """Nobody reads from here on: what the buffers cannot hold is lost, and not by the radio."""
        self._overrun = True

    def end_overrun(self) -> None:
        """The buffers are empty again; what is missing between them and each tag's next frame is the last of it."""
        if self._overrun:
            self._overrun = False
            self._why = dict.fromkeys(self._tags, "overrun")

    def forget(self, tag: str) -> None:
        """As if it had never been heard."""
        self._tags.pop(tag, None)
        self._why.pop(tag, None)

    def mark(self, tag: str) -> tuple[int, int]:
        """(boot, highest number in it) of a tag that was heard: of the boot that was last heard to go on."""
        followed = self._tags[tag][0]
        return followed.number, followed.top


class _Boot:
    """One boot of a tag: its highest number, and a digest of each of the `WINDOW` numbers up to it; 0: not heard."""

    __slots__ = ("_digests", "number", "top")

    def __init__(self, number: int, top: int, digest: int) -> None:
        self.number = number
        self.top = top
        self._digests = array("I", bytes(4 * WINDOW))
        self._digests[top % WINDOW] = digest or 1

    def hear(self, tag: str, seq: int, digest: int, why: Reason) -> Verdict:
        slot, digest = seq % WINDOW, digest or 1
        ahead = seq - self.top
        if ahead > 0:
            for skipped in range(max(self.top + 1, seq - WINDOW), seq):
                self._digests[skipped % WINDOW] = 0
            lost = (Lost(tag, self.number, self.top + 1, seq - 1),) if ahead > 1 else ()
            self.top = seq
            self._digests[slot] = digest
            return Verdict("new", lost, why)
        if ahead <= -WINDOW:
            return Verdict("late")
        known, self._digests[slot] = self._digests[slot], digest
        if known == 0:
            return Verdict("late")
        return Verdict("repeated" if known in (digest, _UNKNOWN) else "conflict")
