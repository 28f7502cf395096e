"""Builds the sdist and the wheel, looks into them, and uses the wheel.

Run by `make wheel`, from the root of the repository. Asserts that

- the sdist holds every file that git tracks, and nothing else but metadata;
- the wheel that is built from the sdist equals the one of the checkout;
- the wheel, in an empty environment with scikit-learn and in an empty
  directory, trains, evaluates and exports: wheel_digits.py.
"""

import pathlib
import subprocess
import sys
import tarfile
import tempfile
import time
import venv
import zipfile

ROOT = pathlib.Path(__file__).parents[1]


def main():
    """Runs all checks; says how long each took."""
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        sdist, wheel = timed("build", build, folder)
        timed("sdist", check_sdist, sdist)
        timed("wheel", check_wheel, wheel, folder)
        timed("installed wheel", use, wheel, folder)


def timed(name, check, *args):
    """What `check` returns; says how long it took."""
    start = time.monotonic()
    result = check(*args)
    print(f"{name}: {time.monotonic() - start:.0f} s", flush=True)
    return result


def run(*command, cwd):
    """Runs a command, which must succeed."""
    subprocess.run([str(part) for part in command], cwd=cwd, check=True)


def build(folder):
    """The sdist, and the wheel built from it: two paths."""
    # Without setuptools' notes of an earlier build, which add their files.
    export = folder / "checkout"
    for path in tracked():
        target = export / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((ROOT / path).read_bytes())
    run(sys.executable, "-m", "build", "--outdir", folder, cwd=export)
    (sdist,) = folder.glob("*.tar.gz")
    (wheel,) = folder.glob("*.whl")
    return sdist, wheel


def tracked():
    """The files of the repository: list of str."""
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, stdout=subprocess.PIPE, check=True
    )
    return listed.stdout.decode().split("\0")[:-1]


def check_sdist(sdist):
    """Compares the sdist with what git tracks."""
    with tarfile.open(sdist) as archive:
        found = {
            member.name.partition("/")[2]
            for member in archive
            if member.isfile()
        }
    found = {
        name
        for name in found
        if name not in ("PKG-INFO", "setup.cfg") and ".egg-info/" not in name
    }
    expected = set(tracked())
    if found != expected:
        raise SystemExit(
            "MANIFEST.in: expected an sdist of the files that git tracks; "
            f"missing: {sorted(expected - found)}, "
            f"unexpected: {sorted(found - expected)}."
        )


def check_wheel(wheel, folder):
    """Compares the wheel of the sdist with one of the checkout."""
    out = folder / "from_checkout"
    run(
        *(sys.executable, "-m", "build", "--wheel", "--outdir", out),
        cwd=folder / "checkout",
    )
    (other,) = out.glob("*.whl")
    one, other = contents(wheel), contents(other)
    differing = [
        name
        for name in sorted(one.keys() | other.keys())
        if one.get(name) != other.get(name)
    ]
    if differing:
        raise SystemExit(
            "wheel: expected the same from the sdist and from the checkout; "
            f"these files differ: {differing}."
        )
    if "dd_keras/py.typed" not in one:
        raise SystemExit("wheel: expected dd_keras/py.typed in it.")
    outside = [n for n in one if not n.startswith(("dd_keras/", "dd_keras-"))]
    if outside:
        raise SystemExit(f"wheel: expected dd_keras alone; received {outside}.")


def contents(wheel):
    """Name to bytes of all files in a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def use(wheel, folder):
    """Installs the wheel where nothing else is, and uses it."""
    environment, empty = folder / "environment", folder / "empty"
    venv.create(environment, with_pip=True)
    python = environment / "bin/python"
    quiet = ("--quiet", "--disable-pip-version-check")
    # Of the extra `apps`, only what has the digits.
    run(
        *(python, "-m", "pip", "install", *quiet, wheel, "scikit-learn"),
        cwd=folder,
    )
    empty.mkdir()
    # -I: neither the working directory nor PYTHONPATH is looked into.
    run(
        *(python, "-I", ROOT / ".ci/wheel_digits.py", environment),
        empty / "exported",
        cwd=empty,
    )


if __name__ == "__main__":
    main()
