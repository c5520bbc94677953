"""What a release needs beside `.ci/run`: `pipx run nox`, or `nox -s package`.

Interpreters that are not installed are passed over, and nox says which.
"""

from __future__ import annotations

import tarfile
from pathlib import Path

import nox

nox.needs_version = ">=2025.2"
nox.options.default_venv_backend = "venv"
nox.options.sessions = ["tests", "wheel", "package", "types", "workflows", "docs"]


@nox.session(python=["3.11", "3.12", "3.13", "3.14"])
def tests(session: nox.Session) -> None:
    """All on virtual clocks; `nox -s tests-3.13 -- tests/test_laws.py` runs others."""
    session.install("-e", ".[dev]")
    _test(session)


@nox.session(python=["3.11", "3.12", "3.13", "3.14"])
def wheel(session: nox.Session) -> None:
    """The wheel, with no extra, accepts a job and serves its response."""
    session.install(str(_built(session, "*.whl")))
    script = Path(".ci/smoke.py").absolute()
    session.run("python", "-I", "-W", "error", str(script))  # apart from the tree


@nox.session
def package(session: nox.Session) -> None:
    """What would be uploaded: its metadata and parts (SBOM); and the sdist passes its tests."""
    sdist, wheel = _built(session, "*.tar.gz"), _built(session, "*.whl")
    session.install("twine", "cyclonedx-bom")
    session.run("twine", "check", "--strict", str(sdist), str(wheel))
    place = Path(session.create_tmp())
    # Of what the wheel brings with it, and nothing of these tools.
    session.run("python", "-m", "venv", "--clear", "--without-pip", str(place / "parts"))
    python = str(place / "parts" / "bin" / "python")
    session.run("python", "-m", "pip", "--python", python, "install", str(wheel))
    bom = sdist.parent / "raincheck.cdx.json"
    session.run("cyclonedx-py", "environment", "--output-file", str(bom), python)
    with tarfile.open(sdist) as archive:
        archive.extractall(place, filter="data")
    session.chdir(place / sdist.name.removesuffix(".tar.gz"))
    session.install("-e", ".[dev]")
    _test(session)


@nox.session
def types(session: nox.Session) -> None:
    """What users of raincheck see of its types, in full: each public name has a known one."""
    extras = (
        "callbacks,celery,cli,client,opentelemetry,pgqueuer,postgres,prometheus,redis,taskiq,wsgi"
    )
    session.install(f"{_built(session, '*.whl')}[{extras}]")
    session.install("httpx", "pyright[nodejs]", "pytest", "types-cachetools")
    session.chdir(session.create_tmp())  # else it takes the tree for the package
    session.run("pyright", "--verifytypes", "raincheck", "--ignoreexternal")


@nox.session
def workflows(session: nox.Session) -> None:
    """The workflows hold to what is known of attacks on them."""
    session.install("zizmor")
    session.run("zizmor", "--offline", "--strict-collection", ".github/workflows")


def _test(session: nox.Session) -> None:
    """What is asked for, or all without sockets and processes; the slow ones last."""
    if session.posargs:
        session.run("pytest", *session.posargs)
    else:
        session.run("pytest", "-m", "not real")
        session.run("pytest", "-m", "slow and not real")


@nox.session
def docs(session: nox.Session) -> None:
    """The site, in `build/docs`: no network is needed, and every link in it leads somewhere."""
    session.install("-e", ".[docs]")
    session.run("python", "-m", "sphinx", "-W", "-E", "--keep-going", "docs", "build/docs")


@nox.session
def links(session: nox.Session) -> None:
    """The links that lead out of the site, which takes a network, and other people's servers."""
    session.install("-e", ".[docs]")
    session.run("python", "-m", "sphinx", "-W", "-b", "linkcheck", "docs", "build/links")


def _built(session: nox.Session, pattern: str) -> Path:
    """The newest of what is in `dist`, built once in a run of nox."""
    place = Path("dist").absolute()
    found = sorted(place.glob(pattern), key=lambda path: path.stat().st_mtime)
    newest = max(path.stat().st_mtime for path in Path("src").rglob("*") if path.is_file())
    if not found or found[-1].stat().st_mtime < newest:
        session.install("build")
        session.run("python", "-m", "build")
        return _built(session, pattern)
    return found[-1]
