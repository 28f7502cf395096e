import errno
import fcntl
import io
import json
import os
import pathlib
import tokenize
import zipfile

import numpy as np
import pytest
from conftest import shell

from dd_keras.utils import files


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def directories(folder):
    return sorted(str(path) for path in folder.iterdir() if path.is_dir())


@pytest.mark.parametrize("kind", [str, pathlib.Path])
@pytest.mark.parametrize("old", [None, "old"])
def test_file_appears_at_the_end_under_its_name(tmp_path, kind, old):
    path = tmp_path / "results.json"
    if old is not None:
        path.write_text(old)
    with files.atomic_write(kind(path)) as part:
        pathlib.Path(part).write_text("new")
        assert (path.read_text() if path.exists() else None) == old
    assert path.read_text() == "new"
    assert names(tmp_path) == ["results.json"]


@pytest.mark.parametrize(
    ("name", "ending"),
    [("a.npz", ".npz"), ("a.b.png", ".png"), ("a", ""), (".hidden", "")],
)
def test_other_name_is_beside_it_and_keeps_its_ending(tmp_path, name, ending):
    # Writers go by the ending: numpy.savez, PIL and Matplotlib do.
    path = tmp_path / name
    with files.atomic_write(path) as part:
        part = pathlib.Path(part)
        assert part.parent == tmp_path
        assert part != path
        assert part.suffix == (ending or ".part")
        part.write_text("new")
    assert names(tmp_path) == [name]


def test_missing_directories_are_made(tmp_path):
    path = tmp_path / "a.b" / "c" / "results.txt"
    with files.atomic_write(path) as part:
        pathlib.Path(part).write_text("new")
    assert path.read_text() == "new"


def test_name_alone_is_in_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with files.atomic_write("results.txt") as part:
        pathlib.Path(part).write_text("new")
    assert names(tmp_path) == ["results.txt"]


@pytest.mark.slow
def test_damaged_npz_provokes_what_is_listed(tmp_path):
    """One that is larger than what is read at once, so checked at its end."""
    path = tmp_path / "whole.npz"
    np.savez(path, big=np.zeros((100, 3000), np.float32), small=np.arange(3))
    whole, provoked = path.read_bytes(), set()
    rng = np.random.default_rng(0)
    start, end = whole.index(b"PK\x01\x02"), len(whole)  # its directory
    places = [*range(200), *range(start, end)]
    damages = [(whole[:place], None) for place in places]
    damages += [(whole, p) for p in places for _ in range(4)]
    for data, place in damages:
        data = bytearray(data)
        if place is not None:
            data[place] ^= int(rng.integers(1, 256))
        try:
            with np.load(io.BytesIO(data)) as arrays:
                dict(arrays)
        except files.DAMAGED as error:
            provoked.add(type(error))
    assert {tokenize.TokenError, zipfile.BadZipFile, EOFError} < provoked


def break_off(path, error, started):
    with files.atomic_write(path) as part:
        if started:
            pathlib.Path(part).write_text("ne")
        raise error


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("old", [None, "old"])
@pytest.mark.parametrize("started", [True, False])
def test_interrupted_write_leaves_what_was_there(tmp_path, error, old, started):
    path = tmp_path / "results.txt"
    if old is not None:
        path.write_text(old)
    with pytest.raises(error):
        break_off(path, error, started)
    assert (path.read_text() if path.exists() else None) == old
    assert names(tmp_path) == ([] if old is None else ["results.txt"])


def test_name_that_cannot_be_replaced_leaves_nothing_behind(tmp_path):
    path = tmp_path / "results.txt"
    (path / "in the way").mkdir(parents=True)
    with pytest.raises(OSError), files.atomic_write(path) as part:  # noqa: PT011
        pathlib.Path(part).write_text("new")
    assert names(tmp_path) == ["results.txt"]


KILLED = """
import os, signal, sys
sys.path.insert(0, "dd_keras/utils")  # without TensorFlow, which takes seconds
import files

with files.atomic_write(sys.argv[1]) as part, open(part, "w") as file:
    file.write('{"half": ')
    file.flush()
    {end}
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("end", "status"),
    [
        ("os._exit(3)", 3),
        ("os.kill(os.getpid(), signal.SIGKILL)", -9),
    ],
)
def test_killed_process_leaves_the_old_file(tmp_path, end, status):
    path = tmp_path / "results.json"
    path.write_text('{"old": 1}')
    script = tmp_path / "script.py"
    script.write_text(KILLED.replace("{end}", end))
    assert shell(script, path).returncode == status
    assert json.loads(path.read_text()) == {"old": 1}
    # What the killed process left is no obstacle to the next.
    [part] = tmp_path.glob("results.*.part.json")
    assert part.read_text() == '{"half": '
    with (
        files.atomic_write(path) as part,
        open(part, "w", encoding="utf-8") as file,
    ):
        file.write("{}")
    assert path.read_text() == "{}"
    assert names(tmp_path) == ["results.json", "script.py"]


def test_file_has_the_permissions_of_any_new_file(tmp_path):
    (tmp_path / "usual").write_text("")
    with files.atomic_write(tmp_path / "whole") as part:
        pathlib.Path(part).write_text("")
    modes = [os.stat(tmp_path / name).st_mode for name in ("usual", "whole")]
    assert modes[0] == modes[1]


def test_directory_appears_under_its_name_when_it_is_placed(tmp_path):
    parent = tmp_path / "models" / "lenet"
    with files.atomic_directory(parent) as part:
        part = pathlib.Path(part)
        assert part.parent == parent
        assert part.name.startswith(".")
        assert names(part) == []
        (part / "graph").write_text("whole")
        assert directories(parent) == [str(part)]
        files.place(part, parent / "1")
        assert directories(parent) == [str(parent / "1")]
    assert names(parent) == ["1"]
    assert (parent / "1" / "graph").read_text() == "whole"


def fill_and_break_off(parent):
    with files.atomic_directory(parent) as part:
        pathlib.Path(part, "graph").write_text("half")
        raise KeyboardInterrupt


def test_directory_that_is_not_placed_is_removed(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        fill_and_break_off(tmp_path)
    with files.atomic_directory(tmp_path):
        pass
    assert names(tmp_path) == []


@pytest.mark.parametrize("taken", ["directory", "empty", "file", "link"])
def test_place_never_overwrites(tmp_path, taken):
    target = tmp_path / "1"
    if taken == "file":
        target.write_text("old")
    elif taken == "link":
        target.symlink_to("nowhere")
    else:
        target.mkdir()
        if taken == "directory":
            (target / "old").write_text("")
    with files.atomic_directory(tmp_path) as part:
        with pytest.raises(FileExistsError, match=r"'.*1'"):
            files.place(part, target)
        assert pathlib.Path(part).is_dir()
    assert names(tmp_path) == ["1"]
    assert target.is_symlink() or not (target / "graph").exists()


def test_place_that_comes_second_in_a_race(tmp_path, monkeypatch):
    monkeypatch.setattr(os.path, "lexists", lambda path: False)
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "first").write_text("")
    (tmp_path / "2").write_text("")
    for target in ("1", "2"):
        part = tmp_path / "part"
        part.mkdir(exist_ok=True)
        with pytest.raises(FileExistsError):
            files.place(part, str(tmp_path / target))
    with pytest.raises(FileNotFoundError):
        files.place(tmp_path / "missing", str(tmp_path / "3"))
    assert names(tmp_path / "1") == ["first"]


ABANDONED = """
import os, pathlib, signal, sys
sys.path.insert(0, "dd_keras/utils")  # without TensorFlow, which takes seconds
import files

with files.atomic_directory(sys.argv[1]) as part:
    pathlib.Path(part, "graph").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
def test_directories_of_the_dead_are_removed_and_of_the_living_are_not(
    tmp_path,
):
    script = tmp_path / "script.py"
    script.write_text(ABANDONED)
    parent = tmp_path / "models"
    with files.atomic_directory(parent) as alive:
        pathlib.Path(alive, "graph").write_text("half")
        assert shell(script, parent).returncode == -9
        assert len(directories(parent)) == 2
        with files.atomic_directory(parent) as part:
            assert directories(parent) == sorted([alive, part])
        assert names(pathlib.Path(alive)) == ["graph"]
        assert directories(parent) == [alive]
    assert names(parent) == []


@pytest.fixture
def shared(tmp_path):
    """A directory that others write to as well."""
    path = tmp_path / "shared"
    path.mkdir()
    return path


def test_lock_is_held_by_one_and_leaves_nothing(shared):
    with files.locked(shared), pytest.raises(BlockingIOError):  # noqa: SIM117
        with files.locked(shared):
            pass
    assert names(shared) == []
    with files.locked(shared):
        pass


def test_lock_whose_file_was_removed_is_not_one(shared):
    """The one before ended while this one waited for nothing."""
    path = shared / ".lock"
    handle = os.open(path, os.O_RDWR | os.O_CREAT)
    path.unlink()
    with pytest.raises(BlockingIOError):
        files._lock(handle, path)
    path.write_text("another's")
    with pytest.raises(BlockingIOError):
        files._lock(handle, path)
    os.close(handle)


def test_abandoned_parts_are_removed_and_those_of_the_living_are_not(shared):
    path = shared / "results.json"
    dead = shared / f"results.{'0' * 16}.part.json"
    others = {"results.json.txt", "results.part.json", "a.part.json"}
    for name in {dead.name, *others}:
        (shared / name).write_text("half")
    with files.atomic_write(path) as alive:
        files.write_text("new", path)
        assert set(names(shared)) == {
            *others, "results.json", pathlib.Path(alive).name
        }  # fmt: skip


# ---------------------------------------------------- file systems, and crashes


def lock_as_on_nfs(handle, operation):
    """Linux makes `flock` on NFS a lock of the file's bytes, for writers."""
    if fcntl.fcntl(handle, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))
    return FLOCK(handle, operation)


FLOCK = fcntl.flock


def test_locks_work_on_nfs(shared, monkeypatch):
    monkeypatch.setattr(fcntl, "flock", lock_as_on_nfs)
    with files.locked(shared), pytest.raises(BlockingIOError):  # noqa: SIM117
        with files.locked(shared):
            pass
    files.write_text("new", shared / "results.json")
    with files.atomic_directory(shared) as part:
        with files.atomic_directory(shared):
            assert pathlib.Path(part).is_dir()
        files.place(part, shared / "1")
    assert names(shared) == ["1", "results.json"]


@pytest.mark.parametrize("error", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_file_system_without_locks(shared, monkeypatch, error):
    """All is written; what might be abandoned is left where it is."""

    def no_locks(handle, operation):
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    dead = [f"results.{'0' * 16}.part.json", f".part-{'0' * 16}.lock"]
    for name in dead:
        (shared / name).write_text("")
    files.write_text("new", shared / "results.json")
    with files.atomic_directory(shared) as part:
        files.place(part, shared / "1")
    with files.locked(shared):
        pass
    assert set(names(shared)) == {"1", "results.json", *dead}


@pytest.fixture
def calls(monkeypatch):
    """What is asked of the operating system: (call, file) in order."""
    made = []

    def watched(name):
        call = getattr(os, name)

        def watch(first, *others):
            path = first
            if isinstance(first, int):
                path = os.readlink(f"/proc/self/fd/{first}")
            made.append((name, os.path.basename(path)))
            return call(first, *others)

        monkeypatch.setattr(os, name, watch)

    for name in ("fsync", "replace", "rename"):
        watched(name)
    return made


def test_file_is_on_the_disk_before_it_has_its_name(shared, calls):
    with files.atomic_write(shared / "results.json") as part:
        pathlib.Path(part).write_text("new")
    part = os.path.basename(part)
    assert calls == [("fsync", part), ("replace", part), ("fsync", "shared")]


def test_directory_is_on_the_disk_before_it_has_its_name(shared, calls):
    with files.atomic_directory(shared) as part:
        pathlib.Path(part, "inner").mkdir()
        pathlib.Path(part, "graph").write_text("whole")
        pathlib.Path(part, "inner", "weights").write_text("whole")
        files.place(part, shared / "1")
    part = os.path.basename(part)
    *synced, renamed, last = calls
    assert {name for _, name in synced} == {part, "graph", "inner", "weights"}
    assert [renamed, last] == [("rename", part), ("fsync", "shared")]


def test_disk_that_fails_when_it_writes_leaves_the_old_file(
    shared, monkeypatch
):
    path = shared / "results.json"
    path.write_text("old")

    def full(handle):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        files.write_text("new", path)
    assert path.read_text() == "old"
    assert names(shared) == ["results.json"]
