"""Programs in processes of their own that start at once.

They are forked from a process that has imported TensorFlow, which takes
seconds, and has computed nothing: it has no threads that a fork would lose.
"""

import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile

_IMPORTED_BEFORE = [
    "tensorflow",
    "keras",
    "sklearn.datasets",
    "matplotlib.pyplot",
    "dd_keras.datasets",
    "dd_keras.defenses",
    "dd_keras.evaluation",
    "dd_keras.networks",
    "dd_keras.serving",
    "dd_keras.training",
]
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(_IMPORTED_BEFORE)


class Program:
    """As `subprocess.Popen` of Python, whose output is kept in files.

    Args:
        command: a script, or "-c" and code, and arguments; str.
        cwd: the directory it runs in.
        environment: dict of str, its environment variables.
        merged: whether its stderr goes to its stdout.
    """

    def __init__(self, command, cwd, environment, merged=False):
        self.args = command
        # Open for as long as this exists.
        output = tempfile.TemporaryFile()  # noqa: SIM115
        errors = output if merged else tempfile.TemporaryFile()  # noqa: SIM115
        self._files = [output, errors]
        descriptors = [
            multiprocessing.reduction.DupFd(file.fileno())
            for file in self._files
        ]
        self._process = _CONTEXT.Process(
            target=_main, args=(command, cwd, environment, *descriptors)
        )
        self._process.start()

    @property
    def pid(self):
        """The number of the process."""
        return self._process.pid

    @property
    def returncode(self):
        """None while it runs; negative if a signal ended it."""
        return self._process.exitcode

    def poll(self):
        """As `returncode`."""
        return self.returncode

    def send_signal(self, number):
        """Sends it a signal."""
        os.kill(self.pid, number)

    def kill(self):
        """Ends it as nothing can prevent."""
        self._process.kill()

    def communicate(self, timeout=None):
        """Waits for its end; returns what it wrote to stdout and stderr."""
        self.wait(timeout)
        return self.written()

    def wait(self, timeout=None):
        """Waits for its end; returns its `returncode`."""
        self._process.join(timeout)
        if self._process.is_alive():
            raise subprocess.TimeoutExpired(self.args, timeout)
        return self.returncode

    def written(self):
        """What it has written so far: (stdout, stderr)."""
        # By number: reading must not move where it writes.
        return tuple(
            os.pread(file.fileno(), os.fstat(file.fileno()).st_size, 0).decode()
            for file in self._files
        )


def run(command, cwd, environment, timeout):
    """As `subprocess.run`: see `Program`."""
    program = Program(command, cwd, environment)
    try:
        written = program.communicate(timeout)
    except subprocess.TimeoutExpired:
        program.kill()
        raise
    return subprocess.CompletedProcess(command, program.returncode, *written)


def _main(command, cwd, environment, output, errors):
    """What the new process does: all that starting Python would."""
    os.dup2(output.detach(), 1)
    os.dup2(errors.detach(), 2)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    script, *arguments = command
    if script == "-c":
        code, *arguments = arguments
        sys.argv = ["-c", *arguments]
        exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})
        return
    sys.argv = [script, *arguments]
    sys.path.insert(0, os.path.dirname(os.path.abspath(script)))
    runpy.run_path(script, run_name="__main__")
