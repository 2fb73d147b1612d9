"""The far end of a turn: a process that loads one model and runs it when it is told to.

It says one line of JSON when the model has answered once, then answers each line of its input with another:
`warm SECONDS` runs until it gets no faster, `run N` gives the seconds of N inferences, and the end of input its
peak memory. Standard library and numpy alone, because peers run it in environments of their own.
"""

import json
import sys
import time
from collections.abc import Callable
from typing import Any

from targets.runtime.footprint import peak_kib
from targets.runtime.timing import milliseconds, seconds_of, warm_up

Once = Callable[[], object]  # one inference


def serve(preload: Callable[[], object], load: Callable[[], Once]) -> None:
    """Serve until the input ends. preload: imports the engine; load: loads the model and gives one inference of it."""
    engine_s = seconds_of(preload)
    before = peak_kib()  # the engine's own code is there whatever the model
    started = time.perf_counter()
    once = load()
    load_s = time.perf_counter() - started
    _say(engine_ms=milliseconds(engine_s), load_ms=milliseconds(load_s), first_ms=milliseconds(seconds_of(once)))
    for line in sys.stdin:
        word, _, value = line.partition(" ")
        if word == "warm":
            warm = warm_up(lambda: seconds_of(once), float(value))
            _say(runs=warm.runs, seconds=warm.seconds, settled=warm.settled)
        elif word == "run":
            used, began = time.process_time(), time.perf_counter()
            seconds = [seconds_of(once) for _ in range(int(value))]
            _say(seconds=seconds, cpu_s=time.process_time() - used, wall_s=time.perf_counter() - began)
    after = peak_kib()
    _say(peak_mib=None if before is None or after is None else round((after - before) / 1024, 2))


def _say(**words: Any) -> None:
    print(json.dumps(words), flush=True)
