"""The control family: the text alone answers, so a method that measures visual dependency should find none."""

import numpy as np

from .synthetic_spec import Question, Sample, ask, pick

OPPOSITES = {"hot": "cold", "big": "small", "up": "down", "left": "right", "day": "night", "fast": "slow"}
OPPOSITES |= {other: one for one, other in OPPOSITES.items()}


def text_only(rng: np.random.Generator) -> Sample:
    """Ask for a small sum, a difference or an opposite; the caller may add an unrelated clip."""
    topic = pick(rng, ("sum", "difference", "opposite"))
    if topic == "opposite":
        word = pick(rng, tuple(OPPOSITES))
        style = pick(rng, ("multiple choice", "free-form"))
        question = ask(rng, f"What is the opposite of {word}?", OPPOSITES[word], style, tuple(OPPOSITES))
        return Sample(question, f"{word} against {OPPOSITES[word]}")
    one, other = sorted((int(number) for number in rng.integers(1, 10, size=2)), reverse=True)
    word, result = ("plus", one + other) if topic == "sum" else ("minus", one - other)
    question = Question(f"What is {one} {word} {other}?", str(result), "numerical")
    return Sample(question, f"{one} {word} {other} is {result}")
