import contextlib
import os
import signal
import subprocess
import sys
import threading

import pytest

from zsad_jax.utils import command_line, interrupts
from zsad_jax.utils.progress import progress


def work_until_signal(number):
    """Returns the body of a command that is interrupted at its third item, and what it finishes."""
    done = []

    def body():
        for item in progress(range(10), total=10, label="work"):
            if item == 2:
                os.kill(os.getpid(), number)
            done.append(item)

    return body, done


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stops_after_current_batch(capfd, number, code):
    before = signal.getsignal(number)
    body, done = work_until_signal(number)
    assert command_line.guarded(body) == code
    assert done == [0, 1, 2]
    assert capfd.readouterr().err == "Interrupted. Run the same command again to resume.\n"
    assert signal.getsignal(number) == before
    assert command_line.guarded(lambda: None) == 0  # nothing is left of the signal


def test_items_are_closed_when_interrupted():
    closed = []

    def items():
        try:
            yield from range(10)
        finally:
            closed.append(True)

    def body():
        for _ in progress(items(), total=10, label="work"):
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt) as caught, interrupts.handled():
        body()
    assert closed, caught  # while the traceback is alive


def test_reports_signal_that_a_library_swallows():
    def body():
        with contextlib.suppress(BaseException):
            os.kill(os.getpid(), signal.SIGINT)

    assert command_line.guarded(body) == 130


def test_libraries_keep_the_handlers_of_python():
    body, done = work_until_signal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        body()
    assert done == [0, 1]


def test_commands_run_in_any_thread():
    codes = []
    thread = threading.Thread(target=lambda: codes.append(command_line.guarded(lambda: 5)))
    thread.start()
    thread.join()
    assert codes == [5]


SECOND = """
import os, signal, time
from zsad_jax.utils import interrupts
interrupts.install()
for _ in range(2):
    os.kill(os.getpid(), signal.SIGTERM)
time.sleep(60)
"""


def test_second_signal_ends_at_once():
    done = subprocess.run(
        [sys.executable, "-c", SECOND], capture_output=True, text=True, timeout=50
    )
    assert (done.returncode, done.stderr) == (143, interrupts.MESSAGE + "\n")


INSTALLED = "import signal, zsad_jax; print(signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL)"
COMMAND = "import sys; sys.argv[0] = '-m'; sys.orig_argv = ['python', '-m', 'zsad_jax.main']; "


@pytest.mark.parametrize(("start", "installed"), [("", "False"), (COMMAND, "True")])
def test_commands_alone_handle_signals_from_their_first_import(start, installed):
    done = subprocess.run([sys.executable, "-c", start + INSTALLED], capture_output=True, text=True)
    assert done.stdout.strip() == installed
