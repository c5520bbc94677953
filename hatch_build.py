"""What a package index shows: the README with links that lead somewhere, and the project's URLs.

They name the repository that a release is made from. `RAINCHECK_REPOSITORY` says it; the workflow
that publishes sets it. Built without it, a package has no URLs, and the README as it stands here.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

_LINK = re.compile(r"\]\((?!https?://|#)([^)\s]+)\)")


def absolute(text: str, repository: str, version: str) -> str:
    """Markdown of this tree, with the links that are relative to it made absolute.

    Args:
        text: the Markdown.
        repository: its URL, without a slash at the end.
        version: of the release, whose tag is `v` and this.
    """
    return _LINK.sub(rf"]({repository}/blob/v{version}/\1)", text)


class LinksHook(MetadataHookInterface):
    """Fills in what depends on the repository."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Set the README and the URLs."""
        text = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        repository = os.environ.get("RAINCHECK_REPOSITORY", "").rstrip("/")
        metadata["urls"] = {}
        if repository:
            text = absolute(text, repository, metadata["version"])
            metadata["urls"] = {
                "Source": repository,
                "Documentation": f"{repository}/tree/v{metadata['version']}/docs",
                "Changelog": f"{repository}/blob/v{metadata['version']}/CHANGELOG.md",
                "Issues": f"{repository}/issues",
            }
        metadata["readme"] = {"content-type": "text/markdown", "text": text}
