"""Sphinx extension: docstrings in plain text become reStructuredText, and a package page lists its public names.

The docstrings of this project are written to be read in the source: code is in `single backticks`, tables and code
blocks are indented or aligned by spaces, and sections (`Args:`, `Raises:`) have Google's form. This extension marks the
tables and code blocks as literal blocks and escapes what reStructuredText would read as markup.
`sphinx.ext.napoleon` then reads the sections.
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util import logging

logger = logging.getLogger(__name__)

SECTION = re.compile(r"(Args|Attributes|Example|Examples|Note|Raises|Returns|Warns|Yields):$")
LIST_ITEM = re.compile(r"([-*]|\d+\.) ")
ALIGNED = re.compile(r"\S {3,}\S")
CODE = re.compile(r"(``[^`]+``|`[^`]+`)")
NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


def paragraphs(lines: list[str]) -> Iterator[list[str]]:
    """The groups of lines between blank lines."""
    group: list[str] = []
    for line in [*lines, ""]:
        if line.strip():
            group.append(line.rstrip())
        elif group:
            yield group
            group = []


def inline(text: str) -> str:
    """One line of prose with its code marked and its other special characters escaped."""
    parts = CODE.split(text)
    for index, part in enumerate(parts):
        if index % 2 == 0:
            parts[index] = re.sub(r"(?<=\w)_(?!\w)", r"\\_", re.sub(r"([\\*|])", r"\\\1", part))
        elif not part.startswith("``"):
            # A name becomes a link where it is documented, and stays code where it is not.
            parts[index] = f":py:obj:{part}" if NAME.fullmatch(part[1:-1]) else f"`{part}`"
    # A role or a literal must not touch a letter: an escaped space separates the two and is not shown.
    for index in range(1, len(parts), 2):
        if parts[index - 1] and parts[index - 1][-1].isalnum():
            parts[index - 1] += "\\ "
        if parts[index + 1] and parts[index + 1][0].isalnum():
            parts[index + 1] = "\\ " + parts[index + 1]
    return "".join(parts)


def is_literal(group: list[str]) -> bool:
    """Whether a paragraph is a table or a code block: indented, or aligned by spaces."""
    if LIST_ITEM.match(group[0]) or group[0].startswith(">>>"):
        return False
    return any(line.startswith(" ") or ALIGNED.search(line) for line in group)


def list_items(group: list[str]) -> Iterator[str]:
    """The lines of a paragraph, with a blank line between its sentences and a list that follows them."""
    for number, line in enumerate(group):
        if number and LIST_ITEM.match(line) and not LIST_ITEM.match(group[0]):
            yield ""
            group = [line, *group]  # the list has begun: its further items follow without a blank line
        yield inline(line)


def to_restructured_text(lines: list[str]) -> list[str]:
    """A docstring in plain text -> the same in reStructuredText, with Google's sections as they were."""
    made: list[str] = []
    literal = section = False
    for group in paragraphs(lines):
        indented = group[0].startswith(" ")
        section = bool(SECTION.match(group[0])) or (section and indented)
        if group[0].startswith(">>>"):
            made += group
            literal = False
        elif not section and is_literal(group):
            if not literal:
                made += ["::", ""]
            made += group if indented else ["    " + line for line in group]
            literal = True
        else:
            made += map(inline, group) if section else list_items(group)
            literal = False
        made.append("")
    return made


def convert(_app: Sphinx, what: str, name: str, _documented: object, _options: Any, lines: list[str]) -> None:
    """Handler of `autodoc-process-docstring`: it changes the lines in place."""
    lines[:] = to_restructured_text(lines)
    if what == "module":
        lines += public_names(name)


def public_names(module_name: str) -> list[str]:
    """The names that a package re-exports, each as a link to the module that defines it."""
    module = sys.modules[module_name]
    if not hasattr(module, "__path__"):
        return []
    links = []
    for name in getattr(module, "__all__", ()):
        value = getattr(module, name)
        home = getattr(value, "__module__", module_name)
        if home != module_name:
            links.append(f"- :py:obj:`{name} <{home}.{getattr(value, '__qualname__', name)}>`")
    return [".. rubric:: Public names", "", *links, ""] if links else []


def check_modules(_app: Sphinx, environment: BuildEnvironment) -> None:
    """Warn of each public module of the source that has no page."""
    root = Path(__file__).parents[2]
    for package in ("geoloc", "quadtree"):
        for path in (root / package).rglob("*.py"):
            parts = path.relative_to(root).with_suffix("").parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            if parts[-1] != "__main__" and f"api/{name}" not in environment.found_docs:
                logger.warning("the API reference has no page of the module %s", name)


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the handlers; docstrings are converted before napoleon reads them, whose priority is 500."""
    app.connect("autodoc-process-docstring", convert, priority=400)
    app.connect("env-check-consistency", check_modules)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
