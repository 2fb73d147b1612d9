"""How every `python -m benchmarks.X` ends: as a verb does, with one line for what its user can mend."""

import sys
from collections.abc import Callable
from typing import NoReturn

from targets.runtime.guard import guard


def script(main: Callable[[], int | None]) -> NoReturn:
    """Run `main` and end the process with its code."""
    spec = sys.modules["__main__"].__spec__
    name = f"python -m {spec.name.removesuffix('.__main__')}" if spec else sys.argv[0]
    sys.exit(guard(name, main))
