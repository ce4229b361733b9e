"""Other processes: forked from one that has imported PyTorch, for that takes longer than what is asked of them."""

import atexit
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
SERVER = """
import ast, json, os, sys, traceback
from contextlib import suppress
from rectrio_lib.encoders import registry
ends = {}


def imported(code):
    for node in ast.parse(code).body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            with suppress(Exception):
                exec(compile(ast.Module([node], []), "", "exec"), {})


def run(end, code, arguments, environment):
    status = 0
    os.dup2(2, 1)  # what it prints is no answer
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["-c", *arguments]
    sys.path[:0] = filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))
    try:
        exec(code, {})
    except BaseException:
        status = 1
        os.write(end, traceback.format_exc()[-9000:].encode())  # a pipe holds so much
    os._exit(status)


for line in sys.stdin:
    asked = json.loads(line)
    if "code" in asked:
        imported(asked["code"])  # once, for all that are forked
        told, end = os.pipe()
        answer = os.fork() or run(end, **asked)
        os.close(end)
        ends[answer] = told
    elif "running" in asked:
        answer = os.waitid(os.P_PID, asked["running"], os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
    else:
        status = os.waitstatus_to_exitcode(os.waitpid(asked["ended"], 0)[1])
        with os.fdopen(ends.pop(asked["ended"]), encoding="utf-8") as told:
            answer = status, told.read()
    print(json.dumps(answer), flush=True)
"""


class Child:
    """A process that runs code and has seen nothing of the test; it is in the test's environment."""

    def __init__(self, code: str, *arguments: object):
        self.pid = _ask(code=code, arguments=list(map(str, arguments)), environment=dict(os.environ))

    def wait(self) -> tuple[int, str]:
        """Return its exit code, negative for a signal, and the traceback that ended it."""
        return tuple(_ask(ended=self.pid))

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        self.wait()

    def wait_until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            assert _ask(running=self.pid), self.wait()
            time.sleep(0.02)


def in_another_process(code: str, *arguments: object) -> None:
    """Run code in another process; fail as it fails."""
    status, error = Child(code, *arguments).wait()
    assert not status, error


def _ask(**asked):
    child = _server()
    child.stdin.write(json.dumps(asked) + "\n")
    child.stdin.flush()
    answer = child.stdout.readline()
    assert answer, "the process that forks has ended"
    return json.loads(answer)


@cache
def _server() -> subprocess.Popen:
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    places = filter(None, [str(ROOT / "tests"), os.environ.get("PYTHONPATH")])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(places)}
    command = [sys.executable, "-c", SERVER]
    child = subprocess.Popen(command, cwd=ROOT, env=environment, text=True, encoding="utf-8", **pipes)
    atexit.register(child.kill)
    return child
