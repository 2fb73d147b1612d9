"""The one exception whose message is meant for the user's eyes."""


class HighwallError(Exception):
    """What is wrong, where, and how to mend it, in one line; the front door prints it and exits 1."""
