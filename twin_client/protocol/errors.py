"""The exception of the pure protocol, which knows nothing of the rooms around it."""


class ProtocolError(ValueError):
    """Bytes or values that break the protocol: what is wrong and where, in one line."""
