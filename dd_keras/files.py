"""Files that appear whole or not at all."""

import contextlib
import os


@contextlib.contextmanager
def whole(path):
    """A name to write a file under, which becomes `path` at the end.

    Whoever reads `path`, also after a crash or on a full disk, finds the
    whole new file, or what was there before.

    Args:
        path: the file to make; missing directories are made.

    Yields:
        Another name, beside it and with its ending.

    Example:
        with files.whole("results.json") as part, open(part, "w") as file:
            json.dump(results, file)
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
