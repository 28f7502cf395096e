"""An output directory that belongs to one run, which can be resumed."""

import contextlib
import datetime
import json
import os
import shutil
from typing import Any

from shared import cli
from shared.provenance import provenance, write_json

from dd_keras import distribution

_RUN = "run.json"
_RESULT = "result.json"


class RunDirectory:
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

    def __init__(
        self,
        directory: str,
        identity: dict[str, Any],
        finished: str | None = None,
        overwrite: bool = False,
    ):
        self._directory = directory
        self._path = os.path.join(directory, _RUN)
        notes = None
        if distribution.is_chief():
            notes = self._claim(identity, finished, overwrite)
            cli.at_end(self._remove_if_empty)
        notes = distribution.from_chief(notes)
        self.starts = notes["starts"]
        if self._notes() != notes:
            cli.fail(
                "--output_dir: expected a directory that all workers share; "
                f"worker {distribution.worker_index()} does not find in "
                f"{self._path} what the chief wrote."
            )

    def checkpoints(self, stage: str) -> str:
        """The directory for the checkpoints of a stage."""
        return os.path.join(self._directory, stage)

    def result(self, stage: str) -> Any:
        """The result of a stage that is done, or None."""
        found = None
        if distribution.is_chief():
            found = _read(self._result_path(stage))
        return distribution.from_chief(found)

    def keep(self, stage: str, result: Any) -> None:
        """Notes that a stage is done; all workers wait for it."""
        if distribution.is_chief():
            write_json(result, self._result_path(stage))
        distribution.barrier()

    def finish(self) -> None:
        """Removes what was needed to resume the run."""
        if distribution.is_chief():
            shutil.rmtree(self._directory)

    def _remove_if_empty(self):
        """Removes the directory again if there is nothing to resume."""
        with contextlib.suppress(FileNotFoundError):
            if os.listdir(self._directory) == [_RUN]:
                shutil.rmtree(self._directory)

    def _result_path(self, stage):
        return os.path.join(self.checkpoints(stage), _RESULT)

    def _notes(self):
        """The notes of the run; None if there are none."""
        return _read(self._path, "identity", "command", "starts")

    def _claim(self, identity, finished, overwrite):
        """Makes the directory this run's; returns what is noted there."""
        notes = self._notes()
        if notes is not None and notes["identity"] == identity:
            notes["starts"] += 1
            print(f"Resuming the unfinished run in {self._directory}.")
        else:
            if notes is not None and not overwrite:
                cli.fail(
                    f"--output_dir: {self._directory} holds an unfinished run "
                    f"with other settings: "
                    f"{_difference(notes['identity'], identity)}. Resume "
                    f"it by its own command, {notes['command']!r}, or choose "
                    "another directory, or --overwrite it."
                )
            if finished and os.path.exists(finished) and not overwrite:
                cli.fail(
                    f"--output_dir: {finished} is of a finished run. Choose "
                    "another directory, or --overwrite it."
                )
            with contextlib.suppress(FileNotFoundError):
                shutil.rmtree(self._directory)
            notes = {
                "identity": identity,
                "command": provenance()["command"],
                "started": datetime.datetime.now(datetime.UTC).isoformat(),
                "starts": 1,
            }
        write_json(notes, self._path)
        return notes


def _read(path, *names):
    """What a JSON file holds, these names among it; None if there is none."""
    try:
        with open(path, encoding="utf-8") as file:
            notes = json.load(file)
        for name in names:
            notes[name]
        return notes
    except FileNotFoundError:
        return None
    except (LookupError, TypeError, ValueError) as error:
        cli.fail(
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
