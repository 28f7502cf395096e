"""What other users of a machine planted is neither followed nor overwritten."""

import contextlib
import os
import pathlib
import tempfile

import pytest
from absl import flags
from conftest import ROOT, imported

from shared import cli

from dd_keras.utils import files

APPS = [
    *("cifar10", "compare", "digits", "evaluate", "imagenet", "images"),
    *("mnist", "reproduce", "sweep"),
]


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def victim(tmp_path):
    """A file that a planted link leads to."""
    path = tmp_path / "victim"
    path.write_text("precious")
    return path


@pytest.fixture
def shared(tmp_path):
    """A directory that others write to as well."""
    path = tmp_path / "shared"
    path.mkdir()
    return path


@pytest.mark.parametrize(
    "name", ["results.json", "results.part.json", "results.json.part"]
)
def test_links_are_replaced_and_not_followed(shared, victim, name):
    (shared / name).symlink_to(victim)
    files.write_text("new", shared / "results.json")
    assert victim.read_text() == "precious"
    assert (shared / "results.json").read_text() == "new"
    assert not (shared / "results.json").is_symlink()


def test_no_name_can_be_foreseen(shared):
    path = shared / "results.json"
    with files.atomic_write(path) as one, files.atomic_write(path) as other:
        pathlib.Path(one).write_text("one")
        pathlib.Path(other).write_text("other")
    assert path.read_text() == "one"
    assert names(shared) == ["results.json"]


def test_name_that_is_taken_is_not_written_to(shared, victim, monkeypatch):
    """As if another had foreseen the random name."""
    (shared / "results.token.part.json").symlink_to(victim)
    monkeypatch.setattr(files.secrets, "token_hex", lambda size: "token")
    with pytest.raises(FileExistsError):
        files.write_text("new", shared / "results.json")
    assert victim.read_text() == "precious"
    assert names(shared) == ["results.token.part.json"]


def test_lock_that_is_a_link_is_refused(shared, victim):
    (shared / ".lock").symlink_to(victim)
    with pytest.raises(OSError, match=r"\.lock"), files.locked(shared):
        pass
    (shared / ".lock").unlink()
    (shared / ".lock").symlink_to(shared / "made")
    with pytest.raises(OSError, match=r"\.lock"), files.locked(shared):
        pass
    assert names(shared) == [".lock"]


def test_only_files_are_appended_to(shared, victim):
    (shared / "log").symlink_to(victim)
    with pytest.raises(OSError, match="log"):
        files.open_to_append(shared / "log")
    for text in (b"one\n", b"two\n"):
        with files.open_to_append(shared / "other") as log:
            log.write(text)
    assert (shared / "other").read_text() == "one\ntwo\n"
    assert victim.read_text() == "precious"


def test_probing_a_directory_follows_no_link(shared, victim):
    (shared / ".writable").symlink_to(victim)
    assert cli.writable_directory(str(shared)) == str(shared)
    assert victim.read_text() == "precious"
    assert names(shared) == [".writable"]


@pytest.mark.parametrize("app", APPS)
def test_default_directories_are_not_shared_with_others(app):
    """Those under /tmp are: another may be there first."""
    with imported(app):
        assert flags.FLAGS["output_dir"].default == f"runs/{app}"
    assert "/runs/" in (ROOT / ".gitignore").read_text().split()


PLANTER, OWNER = 65533, 65534  # numbers of users; they need no names


@contextlib.contextmanager
def acting_as(user):
    """What this process does meanwhile is done as another user."""
    os.seteuid(user)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def open_to_all():
    """A directory that every user reaches, and may write to."""
    if os.geteuid() != 0:
        pytest.skip("only the superuser can act as two users.")
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o777)
        yield pathlib.Path(folder)


def test_one_user_plants_and_another_runs(open_to_all):
    with acting_as(OWNER):
        home = open_to_all / "home"
        home.mkdir(mode=0o700)
        (home / "precious").write_text("precious")
    out = open_to_all / "out"
    with acting_as(PLANTER):
        out.mkdir()
        out.chmod(0o777)
        for name in (".writable", "results.json", "results.part.json"):
            (out / name).symlink_to(home / "precious")
    with acting_as(OWNER):
        cli.writable_directory(str(out))
        files.write_text("new", out / "results.json")
        assert (home / "precious").read_text() == "precious"
        assert (out / "results.json").read_text() == "new"
        assert (out / "results.json").stat().st_uid == OWNER


def test_one_user_runs_where_another_may_not(open_to_all):
    with acting_as(PLANTER):
        (open_to_all / "out").mkdir(mode=0o755)
    with (
        acting_as(OWNER),
        pytest.raises(SystemExit, match="--output_dir: expected a directory"),
    ):
        cli.own_directory(str(open_to_all / "out"))


@pytest.mark.parametrize("is_link", [True, False])
def test_lock_of_another_user_is_told(open_to_all, is_link):
    with acting_as(PLANTER):
        if is_link:
            (open_to_all / ".lock").symlink_to(open_to_all / "precious")
        else:
            (open_to_all / ".lock").write_text("")
    message = r"^error: --output_dir: expected a directory to lock; .*\.lock"
    with acting_as(OWNER), pytest.raises(SystemExit, match=message):
        cli.own_directory(str(open_to_all))
    assert names(open_to_all) == [".lock"]
