"""The process in which math-verify runs. `math_process.py` starts this file by its path; nothing imports it.

A request is a line with a JSON list: [expression] asks whether it can be read, [wanted, found] whether both are equal.
The reply is a line with true or false. Requests are served by a fork of this process: one that uses up its processor
time or its memory ends the fork, is answered with false, and the next fork is there in milliseconds.
"""

import json
import logging
import os
import resource
import signal
import sys
from functools import lru_cache

from math_verify import LatexExtractionConfig, parse, verify

MAX_BYTES = 4 << 30  # of address space; sympy takes far less
READING = [LatexExtractionConfig(boxed_match_priority=0)]


@lru_cache(maxsize=4096)
def read(expression: str) -> list:
    """The expression as math-verify's alternatives; empty where it is none. The box makes the whole text count."""
    return parse(
        f"\\boxed{{{expression}}}",
        READING,
        fallback_mode="no_fallback",
        extraction_mode="first_match",
        parsing_timeout=None,
    )


def reply(expressions: list[str]) -> bool:
    readings = [read(expression) for expression in expressions]
    return all(readings) and (len(readings) == 1 or verify(*readings, timeout_seconds=None))


def serve(seconds: float) -> None:
    """Answer until there is no further request. A request past its time ends the process by SIGPROF."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())  # what the forks say about absurd input
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        resource.setrlimit(resource.RLIMIT_AS, (MAX_BYTES, MAX_BYTES))
    for line in sys.stdin:
        signal.setitimer(signal.ITIMER_PROF, seconds)
        equal = reply(json.loads(line))
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(json.dumps(equal), flush=True)


def main() -> None:
    logging.disable(logging.CRITICAL)  # math-verify warns of the missing timeout that is ours
    seconds = float(sys.argv[1])
    reply(["\\frac{1}{2}", "0.5"])  # the parser fills its tables once, before any fork
    print("ready", flush=True)
    while True:
        fork = os.fork()
        if fork == 0:
            serve(seconds)
            os._exit(0)
        _, status = os.waitpid(fork, 0)
        if status == 0:
            return
        print("false", flush=True)


if __name__ == "__main__":
    main()
