"""Processes that tests start."""

import os
import subprocess
import sys


def run(*command, cwd=None, timeout=300, **environment):
    """Run a command to its end; variables that are None are taken away."""
    variables = {k: v for k, v in {**os.environ, **environment}.items() if v is not None}
    where = {"cwd": cwd, "timeout": timeout, "env": variables}
    return subprocess.run([*map(str, command)], **where, capture_output=True, text=True)


def python(*words, **more):
    """Run this Python with words such as ``"-c", code``."""
    return run(sys.executable, *words, **more)
