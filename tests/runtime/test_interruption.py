"""A signal ends a command with status 128 + the signal, also where Python does not come to its handlers."""

import pathlib
import signal
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).parents[2]
COMMAND = """
import hashlib, sys, time
from mtl_jax import command_line
from mtl_jax.runtime import interruption

def busy(argv):
    print("ready", flush=True)
    if {unsaved}:
        interruption.unsaved.set()
    {body}

command_line.main = busy
interruption.GRACE_SECONDS = 0.3
sys.argv = ["launch.py"]
command_line.run()
"""


def ended(body, number, unsaved=False):
    """(status, what stderr says, seconds from the signal to the end) of a command that runs `body`."""
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND.format(body=body, unsaved=unsaved)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.1)
    began = time.monotonic()
    process.send_signal(number)
    _, errors = process.communicate(timeout=120)
    return process.returncode, errors, time.monotonic() - began


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("body", ["time.sleep(60)", "hashlib.pbkdf2_hmac('sha256', b'', b'', 10**9)"])
def test_a_signal_is_the_status(body, number):
    status, errors, seconds = ended(body, number)
    assert status == 128 + number and seconds < 10
    assert "Traceback" not in errors and ("stopped by" in errors or "interrupted" in errors)


def test_what_is_to_be_saved_is_waited_for():
    body = "hashlib.pbkdf2_hmac('sha256', b'', b'', 3 * 10**6); print('saved', file=sys.stderr)"
    body = f"import signal; signal.signal(15, lambda *_: None); {body}; return 143"
    status, errors, _ = ended(body, signal.SIGTERM, unsaved=True)
    assert status == 143 and "saved" in errors
