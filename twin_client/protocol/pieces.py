"""A stream of bytes cut where its pieces end, whatever else comes down the line."""


class Pieces:
    """What stands between ends, in order. It holds one piece's bytes at most, from one call to the next.

    A stretch without an end that grows over `longest` bytes is no piece: it is skipped up to the next end. Of
    `counters` it adds to `too_long` and `skipped_bytes`. `headless`: what comes first may lack its beginning, at the
    start and after `reset`, so it is skipped too, as bytes and not as a stretch.
    """

    def __init__(self, end: bytes, longest: int, counters: dict[str, int], *, headless: bool = False) -> None:
        self._end, self._longest, self._counters, self._headless = end, longest, counters, headless
        self._begun = bytearray()
        self._deaf = headless  # nothing is held until the next end

    def cut(self, data: bytes) -> list[bytes]:
        """The pieces that `data` ends, but empty ones."""
        whole = []
        *ended, rest = data.split(self._end)
        for piece in ended:
            self._hold(piece)
            if self._begun:
                whole.append(bytes(self._begun))
            self._begun.clear()
            self._deaf = False
        self._hold(rest)
        return whole

    def reset(self) -> None:
        """Give up on a piece that has begun: the line was cut, and what comes next is not its end."""
        self._counters["skipped_bytes"] += len(self._begun)
        self._begun.clear()
        self._deaf = self._headless

    def _hold(self, data: bytes) -> None:
        if not self._deaf and len(self._begun) + len(data) <= self._longest:
            self._begun += data
            return
        self._counters["too_long"] += not self._deaf
        self._counters["skipped_bytes"] += len(self._begun) + len(data)
        self._begun.clear()
        self._deaf = True
