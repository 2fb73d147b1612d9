"""The command that made a result, spelled from the options it was given, so that anyone can repeat it."""

from typing import Any


def spelled(module: str, options: dict[str, Any]) -> str:
    """`python -m MODULE --key value ...`: what is None or False is left out, what is True has no value."""
    words = [f"python -m {module}"]
    for key, value in options.items():
        if value is not None and value is not False:
            option = f"--{key.replace('_', '-')}"
            words.append(option if value is True else f"{option} {value}")
    return " ".join(words)
