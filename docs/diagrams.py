"""Makes the pictures of the diagrams in the pages: `python -m docs.diagrams`.

It needs npm, which fetches mermaid, and Chromium. A picture is named for the source that it is of,
so that one which is not of it is missing, to the site and to the tests.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
PICTURES = HERE / "pictures"
RENDERER = "@mermaid-js/mermaid-cli@11"
LOOK = {
    "theme": "neutral",
    "htmlLabels": False,
    "flowchart": {"htmlLabels": False},
    "fontFamily": "sans-serif",
}

_FENCE = re.compile(r"^```mermaid\n(.*?)\n```$", re.MULTILINE | re.DOTALL)


def sources() -> list[str]:
    """What the pages have of diagrams."""
    return [
        source for page in sorted(HERE.glob("*.md")) for source in _FENCE.findall(page.read_text())
    ]


def picture(source: str) -> Path:
    """Where the picture of a diagram is kept."""
    return PICTURES / f"{hashlib.sha256(source.encode()).hexdigest()[:16]}.svg"


def render(source: str, folder: Path) -> None:
    """Make one picture."""
    browser = shutil.which("chromium-headless-shell") or shutil.which("chromium")
    puppeteer, look, diagram = (folder / name for name in ("puppeteer.json", "look.json", "it.mmd"))
    puppeteer.write_text(json.dumps({"executablePath": browser, "args": ["--no-sandbox"]}))
    look.write_text(json.dumps(LOOK))
    diagram.write_text(source)
    command = ["npx", "--yes", "--package", RENDERER, "mmdc", "--quiet", "-b", "white"]
    files = ["-p", puppeteer, "-c", look, "-i", diagram, "-o", picture(source)]
    subprocess.run([*command, *map(str, files)], check=True)


def main() -> None:
    """Make those that are missing, and take away those of which the source is gone."""
    PICTURES.mkdir(exist_ok=True)
    wanted = {picture(source): source for source in sources()}
    with tempfile.TemporaryDirectory() as folder:
        for path, source in wanted.items():
            if not path.exists():
                render(source, Path(folder))
    for path in set(PICTURES.glob("*.svg")) - wanted.keys():
        path.unlink()


if __name__ == "__main__":
    main()
