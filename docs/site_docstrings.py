"""A Griffe extension that turns the docstrings of this package into Markdown for the API reference."""

import re

from griffe import Extension

LABEL = re.compile(r"^([A-Z][a-z]+): ")  # `Source: ...`, on one line; the Google parser reads the list below `Args:`
FORMULA = re.compile(r"(^|\n)  +\S|^[^`]* = ")
NAMES = re.compile(r",\n +(?=[\w, ]+: )")  # a list of parameters that share a description, over two lines
TYPE = re.compile(r"^( +[\w, ]+) \(`.*\):$", re.MULTILINE)  # (`int`, *optional*, defaults to `3`): the signature has it


def as_markdown(text: str) -> str:
    """Docstring with formulas in code blocks, labels in bold, and parameters without their types."""
    parts = []
    for part in re.split(r"\n\s*\n|\n(?=[A-Z][a-z]+:\s)", TYPE.sub(r"\1:", NAMES.sub(", ", text))):
        if LABEL.match(part):
            part = LABEL.sub(r"**\1:** ", re.sub(r"\n +", "\n", part))
        elif parts and not re.match(r"\w+:\n", part) and FORMULA.search(part):
            part = f"```text\n{part}\n```"
        parts.append(part)
    return re.sub(r"\[(`[^`]+`)\]", r"\1", "\n\n".join(parts))


class Docstrings(Extension):
    """Applies `as_markdown` to every docstring that Griffe reads."""

    def on_instance(self, *, obj, **kwargs):
        """Griffe's event for each module, class, function and attribute."""
        if obj.docstring:
            obj.docstring.value = as_markdown(obj.docstring.value)
