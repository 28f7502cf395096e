"""Looks into the site that `make docs` built, and opens it in a browser.

Run by `make docs`, from the root of the repository. Asserts that

- every link within the site leads to a file that is there, and to a heading
  of it where it names one;
- no page loads anything from elsewhere: it works without a network;
- each guide can be downloaded as a notebook, which has its outputs;
- in Chromium, if it is installed, every page opens without an error in the
  console or a request that fails, and fits a wide and a narrow screen.
"""

import contextlib
import functools
import html.parser
import http.server
import json
import pathlib
import sys
import tempfile
import threading
import urllib.parse

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))
import browser  # noqa: E402

SITE = ROOT / "docs" / "_build"
WIDTHS = (1280, 390)  # a laptop's, a telephone's


class Page(html.parser.HTMLParser):
    """What a page has: ids, links, and what it loads.

    Attributes:
        ids: set of str.
        links: list of str, where its links lead.
        loaded: list of str, what a browser loads by itself.
    """

    def __init__(self, text):
        super().__init__()
        self.ids, self.links, self.loaded = set(), [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        """Notes an element down."""
        attrs = dict(attrs)
        self.ids |= {attrs[key] for key in ("id", "name") if attrs.get(key)}
        if tag == "a" and attrs.get("href"):
            self.links.append(attrs["href"])
        if tag == "link" and attrs.get("rel") != "canonical":
            self.loaded.append(attrs["href"])
        if tag in ("audio", "embed", "iframe", "img", "script", "source"):
            self.loaded += [attrs["src"]] if attrs.get("src") else []


def main():
    """Runs all checks."""
    pages = {
        path.relative_to(SITE).as_posix(): Page(path.read_text("utf-8"))
        for path in sorted(SITE.rglob("*.html"))
    }
    assert "index.html" in pages, "there is no site: make docs"
    links = sum(check_links(name, page, pages) for name, page in pages.items())
    print(f"site: {len(pages)} pages, {links} links within it")
    check_notebooks()
    if browser.CHROMIUM is None:
        print("site: not opened in a browser, as chromium is not installed")
        return
    check_in_browser(list(pages))
    print("site: opened in a browser")


def check_links(name, page, pages):
    """Asserts that what a page refers to is there; how many links it has."""
    count = 0
    for link in (*page.links, *page.loaded):
        parts = urllib.parse.urlsplit(link)
        if parts.scheme or parts.netloc:
            assert link not in page.loaded or parts.scheme == "data", (
                f"{name} loads {link}"
            )
            continue
        target = name
        if parts.path:
            folder = (SITE / name).parent
            path = (folder / urllib.parse.unquote(parts.path)).resolve()
            assert path.exists(), f"{name}: {link} is not there"
            target = path.relative_to(SITE.resolve()).as_posix()
        if parts.fragment and target in pages:
            fragment = urllib.parse.unquote(parts.fragment)
            assert fragment in pages[target].ids, f"{name}: no such {link}"
        count += 1
    return count


def check_notebooks():
    """Asserts that each guide is there as a notebook that was run."""
    for guide in (ROOT / "docs" / "guides").glob("*.py"):
        path = SITE / "guides" / f"{guide.stem}.ipynb"
        cells = json.loads(path.read_text("utf-8"))["cells"]
        code = [cell for cell in cells if cell["cell_type"] == "code"]
        assert any(cell["outputs"] for cell in code), f"{path} has no outputs"
        assert all(cell["execution_count"] for cell in code), path


def check_in_browser(names):
    """Asserts that pages open without errors, and fit the screen."""
    # A browser's processes may outlive it, and still write to its profile.
    with (
        served() as site,
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile,
        browser.opened(profile) as page,
    ):
        for name in names:
            for width in WIDTHS:
                page.screen(width, 900)
                page.open(f"{site}/{name}")
                needed = page.evaluate("document.documentElement.scrollWidth")
                assert needed <= width, (
                    f"{name} needs {needed} pixels of {width}"
                )
                # A request that fails is told of there, too.
                assert not page.console, (name, page.console)
        outside = [
            url for url in page.requests if not url.startswith((site, "about:"))
        ]
        assert not outside, outside


@contextlib.contextmanager
def served():
    """The address of a server of the site, as long as this is open."""
    handler = functools.partial(Quiet, directory=SITE)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Prints no requests; has the icon that browsers ask every server for."""

    def do_GET(self):
        """As its base class."""
        if self.path == "/favicon.ico":
            self.send_response(204)
            self.end_headers()
        else:
            super().do_GET()

    def log_message(self, *args):
        """Prints nothing."""


if __name__ == "__main__":
    main()
