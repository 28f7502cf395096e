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
    assert (tmp_path / "results.part.json").read_text() == '{"half": '
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
        assert names(parent) == [part.name]
        files.place(part, parent / "1")
        assert names(parent) == ["1"]
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
        assert len(names(parent)) == 2
        with files.atomic_directory(parent) as part:
            assert {pathlib.Path(p).name for p in (alive, part)} == {
                *names(parent)
            }
        alive = pathlib.Path(alive)
        assert names(alive) == ["graph"]
        assert names(parent) == [alive.name]
    assert names(parent) == []
