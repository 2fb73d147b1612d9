"""Consistent overhead byte stuffing: bytes without a zero among them, so that a zero can mark where frames end."""


def stuff(data: bytes) -> bytes:
    """COBS: the same without a zero byte, one byte longer in every 254 (Cheshire and Baker, 1999)."""
    coded = bytearray()
    for piece in data.split(b"\0"):
        at = 0
        while len(piece) - at >= 254:
            coded.append(255)
            coded += piece[at : at + 254]
            at += 254
        coded.append(len(piece) - at + 1)
        coded += piece[at:]
    return bytes(coded)


def unstuff(coded: bytes) -> bytes | None:
    """Back from COBS; None where `coded`, which has no zero, is none."""
    blocks = []
    at, end = 0, len(coded)
    while at < end:
        code = coded[at]
        blocks.append(coded[at + 1 : at + code])
        at += code
        if code < 255 and at < end:
            blocks.append(b"\0")
    return b"".join(blocks) if at == end else None
