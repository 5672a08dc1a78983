"""The public names of the package, for the test of their docstrings and for the API reference."""

import ast
import inspect
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from pkgutil import iter_modules
from types import ModuleType

SUBPACKAGES = (
    "trainers",
    "views",
    "objectives",
    "modeling",
    "families",
    "media",
    "rewards",
    "data",
    "evaluation",
    "study",
    "reports",
)
PACKAGES = ("trl_perception", *(f"trl_perception.{name}" for name in SUBPACKAGES))


def is_constant(value) -> bool:
    return not (inspect.isclass(value) or inspect.isfunction(value))


def defining_module(package: ModuleType, name: str) -> str:
    """The module that defines a public name of a package."""
    value = getattr(package, name)
    if not is_constant(value):
        return value.__module__
    below = (f"{package.__name__}.{module.name}" for module in iter_modules(package.__path__))
    return next(module for module in (package.__name__, *below) if name in assignments(module))


def assignments(module: str) -> dict[str, str | None]:
    """Names that a module assigns at its top level, each with the string that follows the assignment."""
    body = ast.parse(Path(find_spec(module).origin).read_text()).body
    names = {}
    for node, following in zip(body, [*body[1:], None], strict=True):
        if isinstance(node, ast.Assign | ast.AnnAssign):
            text = following.value if isinstance(following, ast.Expr) else None
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                if isinstance(target, ast.Name):
                    names[target.id] = text.value if isinstance(text, ast.Constant) else None
    return names


def without_docstring() -> list[str]:
    """Public names, and public methods and properties of public classes, that have no docstring, inherited or their own."""
    missing = set()
    for package in map(import_module, PACKAGES):
        for name in package.__all__:
            value, module = getattr(package, name), defining_module(package, name)
            text = assignments(module)[name] if is_constant(value) else value.__doc__
            if not text or text.startswith(f"{name}("):  # a dataclass without a docstring gets its signature for one
                missing.add(f"{module}.{name}")
            for member in vars(value) if inspect.isclass(value) else ():
                of = inspect.getattr_static(value, member)
                documented = isinstance(of, property | classmethod | staticmethod) or inspect.isfunction(of)
                if documented and not member.startswith("_") and not inspect.getdoc(getattr(value, member)):
                    missing.add(f"{module}.{name}.{member}")
    return sorted(missing)
