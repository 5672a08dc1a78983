"""MkDocs hooks: one API page for each public package, and the files of the repository that pages link to."""

import inspect
import re
import sys
from importlib import import_module
from pathlib import Path

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
from tests.public_names import PACKAGES, defining_module, without_docstring  # noqa: E402

OUTSIDE = re.compile(r"\[(?P<text>[^\]]*)\]\(\.\./(?P<path>[^)#\s]+)\)")  # a link to a file or folder beside docs/


def identifiers(package: str) -> dict[str, str]:
    """Public name -> where it is defined."""
    module = import_module(package)
    return {name: f"{defining_module(module, name)}.{name}" for name in module.__all__}


def api_page(package: str) -> str:
    """The docstring of a package and those of its public names. The top package links to names of the others."""
    others = {path for other in PACKAGES[1:] for path in identifiers(other).values()} if package == PACKAGES[0] else ()
    parts = [f"# {package}", inspect.getdoc(import_module(package))]
    for name, path in identifiers(package).items():
        block = f"::: {path}\n    options:\n      heading: {name}"
        parts.append(f"- [`{name}`][{path}]" if path in others else block)
    return "\n\n".join(parts)


def on_files(files, config):
    """Adds the API pages and the linked files; stops where a public name has no docstring."""
    if missing := without_docstring():
        raise PluginError(f"public names without a docstring: {', '.join(missing)}")
    for package in PACKAGES:
        files.append(File.generated(config, f"api/{package}.md", content=api_page(package)))
    linked = {link["path"] for page in files.documentation_pages() for link in OUTSIDE.finditer(page.content_string)}
    for path in sorted(linked):
        if (ROOT / path).is_file():
            files.append(File.generated(config, f"source/{path}", abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown, page, config, files):
    """Links to files of the repository lead to their copies; a link to a folder becomes text."""

    def link(match):
        if (ROOT / match["path"]).is_dir():
            return match["text"]
        return f"[{match['text']}](source/{match['path']})" if (ROOT / match["path"]).is_file() else match[0]

    return OUTSIDE.sub(link, markdown)
