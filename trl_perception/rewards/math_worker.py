"""The process that runs math-verify. `math_process.py` starts this file by its path; nothing imports it.

A request is a line with a JSON list: [expression] asks whether it can be read, [wanted, found] whether both are equal.
The reply is a line with true or false. A fork of this process serves the requests: a request that uses up its processor
time or memory ends the fork and is answered with false, and the next fork starts within milliseconds.
"""

import json
import logging
import os
import resource
import signal
import sys
from functools import lru_cache
from typing import Any

from latex2sympy2_extended import NormalizationConfig
from math_verify import LatexExtractionConfig, grader, parse, verify
from sympy import Float, Integer, MatrixBase, Rational, UnevaluatedExpr, nan, zoo

MAX_BYTES = 4 << 30  # of address space; sympy uses far less
# Units are removed beforehand: math-verify's own list of units includes letters that may be symbols.
NORMALIZATION = NormalizationConfig(basic_latex=True, units=False, malformed_operators=True, nits=True)
READING = [LatexExtractionConfig(boxed_match_priority=0, normalization_config=NORMALIZATION)]
DIGITS = 50  # of precision in evaluation
TOLERANCE = Rational(1, 10**6) * (1 + Rational(1, 10**6))  # of decimals: 0.333333 is 1/3
PERCENT = UnevaluatedExpr(Rational(1, 100))


@lru_cache(maxsize=4096)
def read(expression: str) -> list:
    """Return math-verify's parses of the expression, empty if it is none. The box makes it parse the whole text."""
    return parse(
        f"\\boxed{{{expression}}}",
        READING,
        fallback_mode="no_fallback",
        extraction_mode="first_match",
        parsing_timeout=None,
    )


def numbers_equal(a: Any, b: Any, *_: int) -> bool:
    """Whether two expressions without symbols are equal; replaces math-verify's test, which rounds to 6 decimals.

    |a - b| <= 1e-6 min(1, max(|a|, |b|)) if either has a decimal number; rational numbers are compared exactly, all
    others to 30 digits.
    """
    if isinstance(a, MatrixBase) and isinstance(b, MatrixBase):
        return a.shape == b.shape and all(map(numbers_equal, a.flat(), b.flat()))
    if len({is_percent(a), is_percent(b)}) == 2:
        plain = [expression.args[0] if is_percent(expression) else expression for expression in (a, b)]
        if all(isinstance(expression, Integer) for expression in plain):
            return plain[0] == plain[1]
    a, b = (grader.safe_sympy_doit(expression) for expression in (a, b))
    if a == b and a not in (nan, zoo):
        return True
    if not (getattr(a, "is_number", False) and getattr(b, "is_number", False)) or not (a.is_finite and b.is_finite):
        return False
    exact = [expression.replace(lambda part: isinstance(part, Float), decimal) for expression in (a, b)]
    size, difference = max(abs(part.evalf(DIGITS)) for part in exact), abs((exact[0] - exact[1]).evalf(DIGITS))
    if a.has(Float) or b.has(Float):
        return bool(difference <= TOLERANCE * min(1, size))
    if isinstance(a, Rational) and isinstance(b, Rational):
        return False
    return bool(difference <= size * Rational(1, 10**30))


def is_percent(expression: Any) -> bool:
    return getattr(expression, "is_Mul", False) and expression.args[-1] == PERCENT


def decimal(number: Float) -> Rational:
    return Rational(str(number))


grader.sympy_numeric_eq = numbers_equal


def reply(expressions: list[str]) -> bool:
    readings = [read(expression) for expression in expressions]
    return all(readings) and (len(readings) == 1 or verify(*readings, timeout_seconds=None))


def serve(seconds: float) -> None:
    """Serve requests until there are no more. A request that exceeds its time ends the process by SIGPROF."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())  # hides warnings of the forks about absurd input
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        resource.setrlimit(resource.RLIMIT_AS, (MAX_BYTES, MAX_BYTES))
    for line in sys.stdin:
        signal.setitimer(signal.ITIMER_PROF, seconds)
        equal = reply(json.loads(line))
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(json.dumps(equal), flush=True)


def main() -> None:
    logging.disable(logging.CRITICAL)  # math-verify warns that it has no timeout; we have our own
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
