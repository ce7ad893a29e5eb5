"""The documentation: its pages are reachable, its links lead somewhere, and docstrings become valid markup."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(path.relative_to(DOCS).as_posix() for path in DOCS.glob("*.md")) + sorted(
    path.relative_to(DOCS).as_posix() for path in DOCS.glob("how-to/*.md")
)


def plain_docstrings() -> ModuleType:
    """The Sphinx extension of the API reference."""
    pytest.importorskip("sphinx")
    path = DOCS / "_extensions" / "plain_docstrings.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def headings(text: str) -> set[str]:
    """The anchors of a page's headings, as GitHub and MyST write them."""
    without_code = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    found = re.findall(r"^#+ (.+)$", without_code, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in found}


def test_every_page_is_in_the_index() -> None:
    listed = set()
    for tree in re.findall(r"```\{toctree\}\n(.*?)```", (DOCS / "index.md").read_text("utf-8"), re.DOTALL):
        listed |= {f"{line}.md" for line in tree.split() if not line.startswith(":")}
    assert set(PAGES) - {"index.md"} <= listed


@pytest.mark.parametrize("page", [*PAGES, "../README.md", "../CONTRIBUTING.md", "../SECURITY.md"])
def test_links_between_pages_lead_somewhere(page: str) -> None:
    path = DOCS / page
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text("utf-8")):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        linked = path.parent / name if name else path
        assert linked.exists(), f"{page} links to {target}"
        if anchor and linked.suffix == ".md":
            assert anchor in headings(linked.read_text("utf-8")), f"{page} links to {target}"


def test_the_glossary_defines_each_term_once() -> None:
    terms = re.findall(r"^- \*\*(.+?)\*\*", (DOCS / "glossary.md").read_text("utf-8"), re.MULTILINE)
    lowered = [term.lower() for term in terms]
    assert len(set(lowered)) == len(lowered)
    for term in (
        *("session", "query", "candidate", "reference database", "reranker", "mixture weight", "posterior"),
        *("mode", "utility", "radius", "region", "in-domain p-value", "cell", "offset", "place", "location"),
        *("sample", "shard", "job", "checkpoint", "adapter", "backbone", "tower", "head", "aggregation"),
    ):
        assert term in lowered


def test_code_and_tables_of_a_docstring_become_literal_blocks() -> None:
    docstring = [
        "A table of points.",
        "",
        "    rows = read(path)",
        "    rows.*",
        "",
        "name        what it is",
        "latlon_deg  (n, 2)  degrees",
        "",
        "After it.",
    ]
    assert plain_docstrings().to_restructured_text(docstring) == [
        *("A table of points.", ""),
        *("::", "", "    rows = read(path)", "    rows.*", ""),
        *("    name        what it is", "    latlon_deg  (n, 2)  degrees", ""),
        *("After it.", ""),
    ]


@pytest.mark.parametrize(
    ("plain", "marked"),
    [
        ("`Prediction` of a photo", ":py:obj:`Prediction` of a photo"),
        ("`--resume` and ``x``", "``--resume`` and ``x``"),
        ("`Cell`s", ":py:obj:`Cell`\\ s"),
        ("*args, |x|, object_", "\\*args, \\|x\\|, object\\_"),
    ],
)
def test_special_characters_of_a_docstring_are_escaped(plain: str, marked: str) -> None:
    assert plain_docstrings().inline(plain) == marked


def test_sections_and_lists_of_a_docstring_stay() -> None:
    docstring = ["First:", "- one", "- two", "", "Args:", "    x: a `y`.", "", "Raises:", "    E: if *x*."]
    assert plain_docstrings().to_restructured_text(docstring) == [
        *("First:", "", "- one", "- two", ""),
        *("Args:", "    x: a :py:obj:`y`.", ""),
        *("Raises:", "    E: if \\*x\\*.", ""),
    ]
