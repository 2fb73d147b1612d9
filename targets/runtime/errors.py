"""The one exception whose message is meant for the user's eyes."""


class HighwallError(Exception):
    """What is wrong, where, and how to mend it, in one line; the front door prints it and exits 1."""


def plain(text: str, most: int = 500) -> str:
    """One line without control characters: what another machine or file says may not steer this terminal."""
    return "".join(letter if letter.isprintable() else "?" for letter in text[:most])
