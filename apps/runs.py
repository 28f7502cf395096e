"""An output directory that belongs to one run, which can be taken up again."""

import contextlib
import datetime
import json
import os
import shutil

import common

from dd_keras import distribution

_RUN = "run.json"
_RESULT = "result.json"


class Run:
    """What a run has done so far, in a directory of its own.

    It is made of stages. A stage that is done has a result; one that is not
    may have checkpoints. Of several workers the chief says what is done, and
    writes; the others see it in the same directory.

    Args:
        directory: where all of this is kept until the run is finished.
        identity: dict, as JSON holds it, of what the run's results depend on.
        finished: file that tells of a run that came to its end; None: none.
        overwrite: whether to start anew where there is another run.

    Raises:
        SystemExit: with a message, if there is another run, or a finished one.

    Attributes:
        starts: how many times the run was started.
    """

    def __init__(self, directory, identity, finished=None, overwrite=False):
        self._directory = directory
        self._path = os.path.join(directory, _RUN)
        told = None
        if distribution.is_chief():
            told = self._claim(identity, finished, overwrite)
            common.at_end(self._leave_no_trace)
        told = distribution.from_chief(told)
        self.starts = told["starts"]
        if self._told() != told:
            common.fail(
                "--output_dir: expected a directory that all workers share; "
                f"worker {distribution.worker_index()} does not find in "
                f"{self._path} what the chief wrote."
            )

    def checkpoints(self, stage):
        """The directory for the checkpoints of a stage."""
        return os.path.join(self._directory, stage)

    def result(self, stage):
        """The result of a stage that is done, or None."""
        found = None
        if distribution.is_chief():
            found = _read(self._result_path(stage))
        return distribution.from_chief(found)

    def keep(self, stage, result):
        """Notes that a stage is done; all workers wait for it."""
        if distribution.is_chief():
            common.write_json(result, self._result_path(stage))
        distribution.barrier()

    def finish(self):
        """Removes what was needed to go on."""
        if distribution.is_chief():
            shutil.rmtree(self._directory)

    def _leave_no_trace(self):
        """Removes the directory again if there is nothing to go on with."""
        with contextlib.suppress(FileNotFoundError):
            if os.listdir(self._directory) == [_RUN]:
                shutil.rmtree(self._directory)

    def _result_path(self, stage):
        return os.path.join(self.checkpoints(stage), _RESULT)

    def _told(self):
        """What is noted of the run; None if there is none."""
        return _read(self._path, "identity", "command", "starts")

    def _claim(self, identity, finished, overwrite):
        """Makes the directory this run's; returns what is noted there."""
        told = self._told()
        if told is not None and told["identity"] == identity:
            told["starts"] += 1
            print(f"Going on with the unfinished run in {self._directory}.")
        else:
            if told is not None and not overwrite:
                common.fail(
                    f"--output_dir: {self._directory} holds an unfinished run "
                    f"with other settings: "
                    f"{_difference(told['identity'], identity)}. Go on with "
                    f"it by its own command, {told['command']!r}, or choose "
                    "another directory, or --overwrite it."
                )
            if finished and os.path.exists(finished) and not overwrite:
                common.fail(
                    f"--output_dir: {finished} is of a finished run. Choose "
                    "another directory, or --overwrite it."
                )
            with contextlib.suppress(FileNotFoundError):
                shutil.rmtree(self._directory)
            told = {
                "identity": identity,
                "command": common.provenance()["command"],
                "started": datetime.datetime.now(datetime.UTC).isoformat(),
                "starts": 1,
            }
        common.write_json(told, self._path)
        return told


def _read(path, *names):
    """What a JSON file holds, these names among it; None if there is none."""
    try:
        with open(path, encoding="utf-8") as file:
            told = json.load(file)
        for name in names:
            told[name]
        return told
    except FileNotFoundError:
        return None
    except (LookupError, TypeError, ValueError) as error:
        common.fail(
            f"{path}: expected the notes of a run; they cannot be read: "
            f"{type(error).__name__}: {error}. Remove "
            f"{os.path.dirname(path)}, and the same command does again what "
            "they were about."
        )


def _difference(found, wanted):
    """The settings in which two runs differ, in words."""
    names = sorted({*found, *wanted})
    return ", ".join(
        f"{name} {found.get(name)} there, {wanted.get(name)} here"
        for name in names
        if found.get(name) != wanted.get(name)
    )
