"""The programs that continuous integration needs: it gets them, or says which it could not get."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.browser import NAMES

pytestmark = pytest.mark.real

ROOT = Path(__file__).parents[1]

PROGRAMS = ("chromium", "curl", "ffmpeg", "node", "npm", "nginx", "caddy", "systemd-analyze")

PACKAGES = {"node": "nodejs", "nginx": "nginx-light", "systemd-analyze": "systemd"}
"""Where a program has another name than its package."""

APT = f"""#!{sys.executable} -I
import sys
from pathlib import Path
here = Path(__file__).parent
command = [word for word in sys.argv[1:] if not word.startswith("-") and "::" not in word]
with (here / "asked").open("a") as asked:
    asked.write(" ".join(command) + "\\n")
if command[0] == "update":
    sys.exit()
known = dict(line.split() for line in (here / "known").read_text().splitlines())
if command[1] not in known:
    sys.exit("E: Unable to locate package " + command[1])
if "--download-only" not in sys.argv:
    (here / known[command[1]]).symlink_to("/bin/true")
"""


class Machine:
    """A machine with few programs.

    Args:
        folder: where they are.
        there: what it has of those that are needed.
        known: which packages can be had.
        user: the number of who asks; 0 is root.
    """

    def __init__(
        self,
        folder: Path,
        there: tuple[str, ...] = (),
        known: tuple[str, ...] | None = PROGRAMS,
        user: int = 0,
    ) -> None:
        self._folder = folder
        for name in ("bash", "env", "timeout"):
            (folder / name).symlink_to(str(shutil.which(name)))
        self._program("id", f"#!/bin/sh\necho {user}\n")
        for name in there:
            (folder / name).symlink_to("/bin/true")
        if known is not None:
            self._program("apt-get", APT)
            packages = [f"{PACKAGES.get(name, name)} {name}\n" for name in known]
            (folder / "known").write_text("".join(packages))

    def _program(self, name: str, text: str) -> None:
        (self._folder / name).write_text(text)
        (self._folder / name).chmod(0o755)

    def run(self) -> tuple[int, str]:
        """What comes of it, and what it says."""
        # Those of the machine that runs the tests are hidden, wherever it has them.
        script = (ROOT / ".ci" / "programs").read_text().replace(":/usr/sbin", "")
        ran = subprocess.run(
            [self._folder / "bash", "-c", script],
            env={"PATH": str(self._folder)},
            capture_output=True,
            text=True,
            timeout=60,
        )
        return ran.returncode, ran.stderr

    @property
    def asked(self) -> list[str]:
        """What apt-get was asked for."""
        asked = self._folder / "asked"
        return asked.read_text().splitlines() if asked.exists() else []


@pytest.fixture
def machine(tmp_path: Path) -> Callable[..., Machine]:
    def make(**settings: object) -> Machine:
        return Machine(tmp_path, **settings)  # type: ignore[arg-type] # as they come

    return make


def test_nothing_is_asked_for_where_all_is_there(machine: Callable[..., Machine]) -> None:
    there = machine(there=("google-chrome", *PROGRAMS[1:]))
    assert there.run() == (0, "")
    assert there.asked == []


def test_what_is_missing_is_installed(machine: Callable[..., Machine]) -> None:
    there = machine(there=PROGRAMS[3:], known=(*PROGRAMS, "chromium-headless-shell"))
    assert there.run() == (0, "")
    installed = ["chromium", "curl", "ffmpeg", "chromium-headless-shell"]
    assert there.asked == ["update", *(f"install {each}" for each in installed for _ in range(2))]


def test_what_is_missing_in_the_distribution_is_named_and_the_rest_is_installed(
    machine: Callable[..., Machine],
) -> None:
    there = machine(known=[each for each in PROGRAMS if each not in ("ffmpeg", "nginx")])
    code, said = there.run()
    assert code == 1
    _, said = said.split("not on the PATH:\n")
    assert said.splitlines() == [
        "  ffmpeg (in Debian, the package ffmpeg): an example that transcodes",
        "  nginx (in Debian, the package nginx-light): what the pages say of deploys",
        "Install them, and begin anew.",
    ]
    assert "install systemd" in there.asked


def test_the_shell_of_a_browser_is_not_needed(machine: Callable[..., Machine]) -> None:
    code, said = machine(there=PROGRAMS[1:]).run()
    assert code == 0
    assert "could not install chromium-headless-shell" in said


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"known": None}, "There is no apt-get here."),
        ({"user": 1000}, "Only root can install them here: apt-get install chromium curl ffmpeg "),
    ],
)
def test_where_nothing_can_be_installed_all_that_is_missing_is_named(
    machine: Callable[..., Machine], settings: dict[str, object], why: str
) -> None:
    there = machine(**settings)
    code, said = there.run()
    assert code == 1
    assert why in said
    assert "  chromium or chromium-browser or google-chrome (in Debian, the package " in said
    for name in PROGRAMS[1:]:
        assert f"\n  {name} (in Debian, " in said
    assert there.asked == []


def test_a_browser_is_whatever_the_tests_take_for_one() -> None:
    any_of_them = "|".join(NAMES[1:])  # but for the shell, which shows no PDF
    assert f"\n{any_of_them} chromium " in (ROOT / ".ci" / "programs").read_text()


def test_ci_begins_with_them() -> None:
    ci = (ROOT / ".ci" / "run").read_text()
    assert ci.index("\n.ci/programs\n") < ci.index("install")
    assert "export RAINCHECK_CI=1" in ci  # without one of them tests fail
    assert (ROOT / ".ci" / "programs").stat().st_mode & 0o111
