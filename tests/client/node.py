"""Programs for Node that use the module which the package ships for pages."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

MODULE = Path(str(files("raincheck"))) / "static" / "raincheck.js"

PREAMBLE = """
const [module, url, speed] = process.argv.slice(1);
const said = [];
const say = (value) => said.push(value);
// The module's clock runs faster; that of the network, and of this program, does not.
const pauses = []; // that it has made between two requests, in its seconds
const [after, clock] = [setTimeout, performance.now.bind(performance)];
const caller = () => new Error().stack;
globalThis.setTimeout = (then, ms, ...given) => {
  const stack = caller();
  if (/#pass.*raincheck/.test(stack)) pauses.push(ms / 1000);
  return after(then, stack.includes("raincheck") ? ms / speed : ms, ...given);
};
performance.now = () => (caller().includes("raincheck") ? speed : 1) * clock();
Math.random = () => 0.5; // so that no pause is longer or shorter
const passed = (seconds) => new Promise((resume) => setTimeout(resume, 1000 * seconds));
const known = await import(module);
const { follow, updates, cancel, FollowError, DeadlineExceeded, Unreachable, NoResponse } = known;

// What a promise is rejected with.
const caught = (promise) => promise.then(
  (value) => { throw new Error(`there is no error, but ${value?.status}`); },
  (error) => {
    const { name, message, statusUrl, response } = error;
    return { name, message, statusUrl, status: response?.status };
  },
);

// A `fetch` that keeps what it was called for.
const calls = [];
const noted = (url, init) => {
  const { prefer, ...headers } = Object.fromEntries(init.headers);
  const { method = "GET", credentials } = init;
  calls.push({ url, method, prefer, headers, credentials });
  return fetch(url, init);
};
"""


def run(source: str, url: str, *, speed: float = 1) -> list[Any]:
    """Run a program under Node, and return what it said.

    Args:
        source: it uses what the preamble has.
        url: of its server.
        speed: how much faster the module's clock runs.
    """
    node = shutil.which("node")
    if node is None:
        if os.environ.get("RAINCHECK_CI"):
            raise RuntimeError("there is no node")
        pytest.skip("there is no node")
    program = f"{PREAMBLE}\n{source}\nconsole.log(JSON.stringify(said));"
    done = subprocess.run(
        [node, "--input-type=module", "--eval", program, MODULE.as_uri(), url, str(speed)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    said: list[Any] = json.loads(done.stdout)
    return said
