"""Another process: it starts once a session, for importing PyTorch takes longer than what is asked of it."""

import atexit
import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
SERVER = """
import json, os, sys, traceback
from rectrio_lib.core import device
from rectrio_lib.encoders import registry
answers, sys.stdout, precision, path = sys.stdout, sys.stderr, device.best_precision, list(sys.path)
for line in sys.stdin:
    asked, error = json.loads(line), ""
    os.environ.clear()
    os.environ.update(asked["environment"])
    sys.argv, sys.path[:] = ["-c", *asked["arguments"]], [*asked["path"], *path]
    try:
        exec(asked["code"], {})
    except BaseException:
        error = traceback.format_exc()
    device.best_precision = precision
    print(json.dumps(error), file=answers, flush=True)
"""


def in_another_process(code: str, *arguments: object) -> None:
    """Run code in a process that has seen nothing of the test, in the test's environment; fail as it fails."""
    path = [place for place in os.environ.get("PYTHONPATH", "").split(os.pathsep) if place]
    asked = {"code": code, "arguments": list(map(str, arguments)), "environment": dict(os.environ), "path": path}
    child = _server()
    child.stdin.write(json.dumps(asked) + "\n")
    child.stdin.flush()
    answer = child.stdout.readline()
    assert answer, "the other process has ended"
    assert not json.loads(answer), json.loads(answer)


@cache
def _server() -> subprocess.Popen:
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    child = subprocess.Popen([sys.executable, "-c", SERVER], cwd=ROOT, text=True, encoding="utf-8", **pipes)
    atexit.register(child.kill)
    return child
