"""Files and directories that are written atomically.

What is new is made under a random name, exclusively and through no link: in a
directory that others write to as well, nothing that they planted is followed.
"""

import contextlib
import errno
import fcntl
import os
import re
import secrets
import shutil
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from typing import BinaryIO

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
_LOCK = ".lock"
_TOKEN = r"[0-9a-f]{16}"  # as `secrets.token_hex(8)` makes them
_NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
_MODE = 0o666  # less the process' umask, as any new file has it
# What `flock` answers where a file system has no locks.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[str]:
    """A name to write a file under, which becomes `path` at the end.

    Whoever reads `path`, also after a crash or on a full disk, finds the
    whole new file, or what was there before.

    Args:
        path: the file to make; missing directories are made. Where it is a
            link, the link is replaced, and not what it leads to.

    Yields:
        Another name, beside it and with its ending. An empty file is there.

    Example:
        >>> from dd_keras.utils import files
        >>> with files.atomic_write("results.json") as part:
        ...     with open(part, "w") as file:
        ...         size = file.write("{}")
        >>> os.listdir()
        ['results.json']
    """
    path = os.fspath(path)
    folder, name = os.path.split(path)
    folder = folder or "."
    os.makedirs(folder, exist_ok=True)
    stem, ending = os.path.splitext(name)
    for old in _abandoned(folder, f"{stem}.", f".part{ending}"):
        with contextlib.suppress(OSError):
            os.remove(old)
    part, handle = _new_locked(folder, f"{stem}.", f".part{ending}")
    try:
        yield part
        _sync(part)
        os.replace(part, path)
        _sync(folder)
    except BaseException:
        with contextlib.suppress(OSError):
            os.remove(part)
        raise
    finally:
        os.close(handle)


def write_text(text: str, path: str | os.PathLike[str]) -> None:
    """Writes a text file in UTF-8, atomically."""
    with atomic_write(path) as part, open(part, "w", encoding="utf-8") as file:
        file.write(text)


def open_to_append(path: str | os.PathLike[str]) -> BinaryIO:
    """Opens a file to append to.

    Raises:
        OSError: if it is a link, or cannot be opened.
    """

    def through_no_link(name, flags):
        return os.open(name, flags | os.O_NOFOLLOW, _MODE)

    return open(path, "ab", opener=through_no_link)


@contextlib.contextmanager
def atomic_directory(parent: str | os.PathLike[str]) -> Iterator[str]:
    """An empty directory to fill, and then to `place` beside it.

    It is hidden, and at the end it is removed unless it was placed. So are
    those that killed processes left. Meanwhile a locked file beside it says
    that its process lives.

    Args:
        parent: the directory it is in; made if it is missing.

    Yields:
        Its path.

    Example:
        >>> from dd_keras.utils import files
        >>> with files.atomic_directory("models") as part:
        ...     classifier.save(f"{part}/classifier.keras")
        ...     files.place(part, "models/1")
        >>> os.listdir("models/1")
        ['classifier.keras']
    """
    parent = os.fspath(parent)
    os.makedirs(parent, exist_ok=True)
    for lock in _abandoned(parent, _PART, _LOCK):
        shutil.rmtree(lock.removesuffix(_LOCK), ignore_errors=True)
        with contextlib.suppress(OSError):
            os.remove(lock)
    lock, handle = _new_locked(parent, _PART, _LOCK)
    part = lock.removesuffix(_LOCK)
    try:
        os.mkdir(part)
        yield part
    finally:
        shutil.rmtree(part, ignore_errors=True)
        with contextlib.suppress(OSError):
            os.remove(lock)
        os.close(handle)


def place(part: str | os.PathLike[str], path: str | os.PathLike[str]) -> None:
    """Gives a directory its final name, which must be free.

    All of it is on the disk by then, also if the power fails.

    Args:
        part: what `atomic_directory` gave.
        path: its name from now on, on the same file system.

    Raises:
        FileExistsError: if there is a `path` already.
    """
    taken = FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)
    if os.path.lexists(path):
        raise taken
    for folder, _, names in os.walk(part):
        for name in names:
            _sync(os.path.join(folder, name))
        _sync(folder)
    try:
        os.rename(part, path)
    except OSError as error:  # another process was faster
        if error.errno in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
            raise taken from error
        raise
    _sync(os.path.dirname(path) or ".")


@contextlib.contextmanager
def locked(directory: str | os.PathLike[str]) -> Iterator[None]:
    """Holds a directory that others ask for in the same way.

    It is free again when the process ends, however it ends. Meanwhile there
    is a file `.lock` in it. Where a file system has no locks, this does
    nothing else.

    Args:
        directory: it must be there.

    Raises:
        BlockingIOError: if another holds it.
        OSError: if it cannot be written, or its `.lock` is a link.
    """
    path = os.path.join(directory, _LOCK)
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, _MODE)
    try:
        _lock(handle, path)
    except BaseException:
        os.close(handle)
        raise
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            os.remove(path)
        os.close(handle)


def _new_locked(folder, start, end):
    """A new, locked file under a random name: (its path, its descriptor)."""
    while True:
        path = os.path.join(folder, f"{start}{secrets.token_hex(8)}{end}")
        handle = os.open(path, _NEW, _MODE)
        try:
            _lock(handle, path)
            return path, handle
        except BlockingIOError:  # another process took it for abandoned
            os.close(handle)
        except BaseException:
            os.close(handle)
            os.remove(path)
            raise


def _abandoned(folder, start, end):
    """The files, as `_new_locked` made them, whose processes are dead.

    Each is locked until the next.
    """
    pattern = re.compile(re.escape(start) + _TOKEN + re.escape(end))
    for name in filter(pattern.fullmatch, os.listdir(folder)):
        path = os.path.join(folder, name)
        with contextlib.suppress(OSError):  # its process lives, or removes it
            handle = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
            try:
                if _lock(handle, path):
                    yield path
            finally:
                os.close(handle)


def _lock(handle, path):
    """Locks an open file until it is closed.

    Args:
        handle: its descriptor, for writing: on NFS others cannot be locked.
        path: its name.

    Returns:
        Whether it is locked; False where its file system has no locks.

    Raises:
        BlockingIOError: if another process has locked it, or removed it.
    """
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        is_there = os.path.samestat(os.fstat(handle), os.lstat(path))
    except FileNotFoundError:
        is_there = False
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return False
        raise
    if not is_there:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN), path)
    return True


def _sync(path):
    """Waits until a file, or the names in a directory, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a file system that cannot
            raise
    finally:
        os.close(handle)
