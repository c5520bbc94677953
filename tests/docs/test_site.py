"""The site: it builds without a network, and is whole."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
import sys
import zlib
from html import unescape
from pathlib import Path
from urllib.parse import unquote

import pytest

import raincheck
import raincheck.client
import raincheck.dialects
import raincheck.openapi
import raincheck.testing
from docs import diagrams
from tests.docs.blocks import PAGES, ROOT, blocks
from tests.docs.wire import problems

DOCS = ROOT / "docs"
COMMAND = "python -m sphinx -W -E --keep-going docs build/docs"

PUBLIC = [raincheck, raincheck.client, raincheck.dialects, raincheck.openapi, raincheck.testing]


# --- without building it -------------------------------------------------------------------------


def test_every_diagram_has_the_picture_of_its_source() -> None:
    """`python -m docs.diagrams` makes those that are missing."""
    wanted = {diagrams.picture(source) for source in diagrams.sources()}
    assert wanted == {*diagrams.PICTURES.glob("*.svg")}
    for path in wanted:
        assert not re.search(r'(href|src)="http|@import|url\(["\']?http', path.read_text())


def test_every_link_to_a_file_leads_to_one() -> None:
    for page in PAGES:
        for link in re.findall(r"\]\((?!https?://|#)([^)#\s]+)", page.read_text()):
            if page.name != "changes.md":
                assert (page.parent / link).exists(), (page.name, link)


def test_programs_are_told_of_every_page() -> None:
    said = re.findall(r"\]\(([\w-]+\.md)\)", (DOCS / "llms.txt").read_text())
    assert sorted(said) == sorted(page.name for page in DOCS.glob("*.md") if page.stem != "index")


def test_people_are_led_to_every_whole_use() -> None:
    uses = sorted(each.parent.name for each in (ROOT / "examples").glob("*/README.md"))
    said = re.findall(r"\]\(\.\./examples/(\w+)\)", (DOCS / "index.md").read_text())
    assert sorted(said) == uses


def test_the_command_is_the_same_everywhere() -> None:
    assert COMMAND in (ROOT / "CONTRIBUTING.md").read_text()
    assert (
        ", ".join(f'"{word}"' for word in shlex.split(COMMAND)) in (ROOT / "noxfile.py").read_text()
    )


# --- with building it ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, as it is built by the command, with a proxy that leads nowhere."""
    place = tmp_path_factory.mktemp("site")
    _, *command = shlex.split(COMMAND)
    nowhere = {"http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9"}
    done = subprocess.run(
        [sys.executable, *command[:-1], "-q", str(place)],
        cwd=ROOT,
        env={"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", **nowhere},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return place


def inventory(site: Path) -> set[str]:
    """The names that others may link to."""
    packed = (site / "objects.inv").read_bytes().split(b"\n", 4)[4]
    lines = zlib.decompress(packed).decode().splitlines()
    return {line.split(" ")[0] for line in lines if " py:" in line}


@pytest.mark.extra_docs
@pytest.mark.real
@pytest.mark.timeout(600)
class TestBuilt:
    def test_nothing_in_it_comes_from_elsewhere(self, site: Path) -> None:
        loaded = r'<(?:script|img|iframe|link)\b[^>]*\b(?:src|href)="((?:https?:)?//[^"]*)"'
        for page in site.rglob("*.html"):
            assert re.findall(loaded, page.read_text()) == [], page
            assert 'class="mermaid"' not in page.read_text()
        for style in site.rglob("*.css"):
            assert not re.search(r"@import\s+url\(.?http|url\(.?(https?:)?//", style.read_text())

    def test_every_link_within_it_leads_somewhere(self, site: Path) -> None:
        pages = {page: page.read_text() for page in site.rglob("*.html")}
        ids = {page: {*re.findall(r'\bid="([^"]*)"', text)} for page, text in pages.items()}
        for page, text in pages.items():
            for link in re.findall(r'<a\b[^>]*\bhref="(?!\w+:)([^"]+)"', text):
                path, _, anchor = unescape(unquote(link)).partition("#")
                target = (page.parent / path.partition("?")[0]).resolve() if path else page
                assert target.exists(), (page.name, link)
                assert anchor in {"", *ids.get(target, {anchor})}, (page.name, link)

    def test_every_public_name_has_its_place(self, site: Path) -> None:
        names = {f"{module.__name__}.{name}" for module in PUBLIC for name in module.__all__}
        assert names - inventory(site) == set()

    def test_what_the_pages_import_has_its_place(self, site: Path) -> None:
        imported = set()
        for block in (block for page in PAGES for block in blocks(page)):
            for node in ast.walk(ast.parse(block.source)) if block.language == "python" else ():
                if isinstance(node, ast.ImportFrom) and str(node.module).startswith("raincheck"):
                    imported |= {f"{node.module}.{alias.name}" for alias in node.names}
        assert imported - inventory(site) == set()

    def test_every_problem_has_an_anchor(self, site: Path) -> None:
        page = (site / "problems.html").read_text()
        for name, _, _ in problems():
            assert f'<section id="{name}">' in page, name

    def test_programs_get_the_pages_as_they_are_written(self, site: Path) -> None:
        for page in DOCS.glob("*.md"):
            assert (site / page.name).read_text() == page.read_text()
        assert (site / "llms.txt").read_text() == (DOCS / "llms.txt").read_text()

    def test_a_diagram_is_a_picture(self, site: Path) -> None:
        for source in diagrams.sources():
            assert (site / "_images" / diagrams.picture(source).name).exists()

    def test_a_diagram_that_is_too_small_to_read_leads_to_itself(self, site: Path) -> None:
        pages = "".join(page.read_text() for page in site.glob("*.html"))
        for picture in re.findall(r'<img\b[^>]*\bsrc="(_images/[0-9a-f]{16}\.svg)"', pages):
            assert re.search(rf'<a\b[^>]*\bhref="{picture}"[^>]*><img\b', pages), picture
