"""Where clients are installed: environments of their own, which are kept for the next time."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

HERE = Path(__file__).parent
PACKAGES = HERE / "package.json"
INSTALL = 900.0
"""Seconds that an installation may take."""


class NotInstalled(Exception):
    """What was to be installed is not."""


class Environments:
    """Makes environments.

    Args:
        folder: where they are kept.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def python(self, requirements: Sequence[str]) -> Path:
        """The interpreter of an environment that has these, and what they need."""

        def make(folder: Path) -> None:
            run(sys.executable, "-m", "venv", folder)
            python = folder / "bin" / "python"
            run(python, "-m", "pip", "install", "--quiet", "--no-input", *requirements)

        return self._kept("python", "\n".join([sys.version, *requirements]), make) / "bin/python"

    def node_modules(self) -> Path:
        """A folder that has what `package.json` says."""

        def make(folder: Path) -> None:
            folder.mkdir()
            shutil.copy(PACKAGES, folder)
            run("npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", cwd=folder)

        return self._kept("node", PACKAGES.read_text(), make) / "node_modules"

    def _kept(self, kind: str, content: str, make: Callable[[Path], None]) -> Path:
        """What was made of this content before, or is made now, and then is there as a whole."""
        key = hashlib.sha256(content.encode()).hexdigest()[:16]
        kept = self._folder / f"{kind}-{key}"
        if not kept.exists():
            new = self._folder / f"{kind}-{key}-{os.getpid()}"
            try:
                make(new)
                new.rename(kept)
            except OSError:
                if not kept.exists():  # else another process was first
                    raise
            finally:
                shutil.rmtree(new, ignore_errors=True)
        return kept


def run(*command: str | Path, cwd: Path | None = None) -> None:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=INSTALL)
    if done.returncode != 0:
        raise NotInstalled(f"{' '.join(map(str, command))}:\n{done.stdout}{done.stderr}")
