"""Files and directories that are written atomically."""

import contextlib
import errno
import os
import shutil
import tokenize
import uuid
import zipfile
import zlib
from collections.abc import Iterator

# What a damaged npz or JSON file provokes in those who read it. NumPy, zipfile
# and json have no error of their own for it; changing each byte of some files,
# and cutting them off at each, showed these. To be caught around the reading
# alone.
DAMAGED = (
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
)

_PART = ".part-"  # what directories begin with that are not finished


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[str]:
    """A name to write a file under, which becomes `path` at the end.

    Whoever reads `path`, also after a crash or on a full disk, finds the
    whole new file, or what was there before.

    Args:
        path: the file to make; missing directories are made.

    Yields:
        Another name, beside it and with its ending.

    Example:
        from dd_keras.utils import files

        with files.atomic_write("results.json") as part:
            with open(part, "w") as file:
                file.write("{}")
    """
    path = os.fspath(path)
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    root, ending = os.path.splitext(path)
    part = f"{root}.part{ending}"
    try:
        yield part
        os.replace(part, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.remove(part)
        raise


def write_text(text: str, path: str | os.PathLike[str]) -> None:
    """Writes a text file in UTF-8, atomically."""
    with atomic_write(path) as part, open(part, "w", encoding="utf-8") as file:
        file.write(text)


@contextlib.contextmanager
def atomic_directory(parent: str | os.PathLike[str]) -> Iterator[str]:
    """An empty directory to fill, and then to `place` beside it.

    It is hidden, and at the end it is removed unless it was placed. So are
    those that killed processes left.

    Args:
        parent: the directory it is in; made if it is missing.

    Yields:
        Its path.

    Example:
        from dd_keras.utils import files

        with files.atomic_directory("models") as part:
            classifier.save(f"{part}/classifier.keras")
            files.place(part, "models/1")
    """
    parent = os.fspath(parent)
    os.makedirs(parent, exist_ok=True)
    for name in os.listdir(parent):
        if name.startswith(_PART):
            _remove_abandoned(os.path.join(parent, name))
    part, lock = _locked_directory(parent)
    try:
        yield part
    finally:
        shutil.rmtree(part, ignore_errors=True)
        os.close(lock)


def place(part: str | os.PathLike[str], path: str | os.PathLike[str]) -> None:
    """Gives a directory its final name, which must be free.

    Args:
        part: what `atomic_directory` gave.
        path: its name from now on, on the same file system.

    Raises:
        FileExistsError: if there is a `path` already.
    """
    taken = FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)
    if os.path.lexists(path):
        raise taken
    try:
        os.rename(part, path)
    except OSError as error:  # another process was faster
        if error.errno in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
            raise taken from error
        raise


@contextlib.contextmanager
def locked(directory: str | os.PathLike[str]) -> Iterator[None]:
    """Holds a directory that others ask for in the same way.

    It is free again when the process ends, however it ends. Where there are
    no locks (not POSIX), this does nothing.

    Args:
        directory: it must be there.

    Raises:
        BlockingIOError: if another holds it.
    """
    try:
        handle = _lock(directory)
    except ImportError:
        yield
        return
    try:
        yield
    finally:
        os.close(handle)


def _locked_directory(parent):
    """A new directory, and the lock that says that its process lives."""
    while True:
        part = os.path.join(parent, f"{_PART}{uuid.uuid4().hex}")
        os.mkdir(part)
        # Before it was locked, another process may take it for abandoned.
        with contextlib.suppress(BlockingIOError, FileNotFoundError):
            return part, _lock(part)


def _remove_abandoned(part):
    with contextlib.suppress(OSError):  # its process lives, or removes it
        lock = _lock(part)
        shutil.rmtree(part, ignore_errors=True)
        os.close(lock)


def _lock(directory):
    """Locks a directory until the process ends or closes what is returned.

    Raises:
        BlockingIOError: if another process has locked it.
        OSError: if it is gone, or its file system has no locks.
    """
    import fcntl  # of POSIX; without it, all but this works

    handle = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not os.path.lexists(directory):
            raise FileNotFoundError(errno.ENOENT, "removed", directory)
    except OSError:
        os.close(handle)
        raise
    return handle
