"""raincheck.d.ts says to TypeScript what the module does."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.real

FOLDER = Path(__file__).parent / "types"
TSC = FOLDER / "node_modules" / ".bin" / "tsc"
STRICT = [
    *("--noEmit", "--strict", "--exactOptionalPropertyTypes", "--noUncheckedIndexedAccess"),
    *("--noPropertyAccessFromIndexSignature", "--noUnusedLocals"),
    *("--target", "es2022", "--module", "nodenext", "--lib", "es2022,dom,dom.iterable"),
]


def test_what_it_lets_through_and_what_not() -> None:
    if not TSC.exists() and not os.environ.get("RAINCHECK_CI"):
        pytest.skip("there is no tsc; npm install --prefix tests/client/types brings it")
    done = subprocess.run(
        [TSC, *STRICT, "usage.ts"], cwd=FOLDER, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "")
