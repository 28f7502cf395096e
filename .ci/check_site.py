"""Looks into the site that `make docs` built, and opens it in a browser.

Run by `make docs`, from the root of the repository. Asserts that

- every link within the site leads to a file that is there, and to a heading
  of it where it names one;
- no page loads anything from elsewhere: it works without a network;
- each guide can be downloaded as a notebook, which has its outputs;
- in Chromium, if it is installed, every page opens without an error in the
  console or a request that fails, and fits a wide and a narrow screen.
"""

import functools
import html.parser
import http.server
import json
import pathlib
import re
import shutil
import subprocess
import tempfile
import threading
import urllib.parse

ROOT = pathlib.Path(__file__).parents[1]
SITE = ROOT / "docs" / "_build"
WIDTHS = (1280, 390)  # a laptop's, a telephone's
BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
# In frames of either width: what the page asked for, and how wide it is.
FRAMES = """<!doctype html><title>frames</title><body><script>
const pages = PAGES, widths = WIDTHS, told = [];
async function open(page, width) {
  const frame = document.createElement("iframe");
  frame.width = width; frame.height = 900; frame.src = page;
  document.body.append(frame);
  await new Promise(done => { frame.onload = done; });
  await new Promise(done => setTimeout(done, 100));
  const root = frame.contentDocument.documentElement;
  told.push({page, width, needed: root.scrollWidth, loaded:
    frame.contentWindow.performance.getEntriesByType("resource").map(
      entry => [entry.name, entry.responseStatus])});
  frame.remove();
}
(async () => {
  for (const page of pages)
    for (const width of widths) await open(page, width);
  await fetch("/told", {method: "POST", body: JSON.stringify(told)});
})();
</script>"""


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
    if BROWSER is None:
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
    told, console = opened(names)
    assert not console, "\n".join(console)
    assert len(told) == len(names) * len(WIDTHS)
    for page in told:
        for url, status in page["loaded"]:
            assert "//localhost:" in url, (page, url)
            assert status in (0, 200), (page, url)
        assert page["needed"] <= page["width"], (
            f"{page['page']} needs {page['needed']} pixels of {page['width']}"
        )


def opened(names):
    """What the frames tell, and what the console says."""
    received, told = threading.Event(), []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self):
            if self.path != "/frames":
                super().do_GET()
                return
            text = FRAMES.replace("PAGES", json.dumps(names), 1)
            text = text.replace("WIDTHS", json.dumps(WIDTHS), 1)
            self._answer(text.encode())

        def do_POST(self):
            length = int(self.headers["Content-Length"])
            told.extend(json.loads(self.rfile.read(length)))
            self._answer(b"")
            received.set()

        def _answer(self, content):
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *args):
            pass

    handler = functools.partial(Handler, directory=SITE)
    server = http.server.ThreadingHTTPServer(("localhost", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    # The browser's processes may outlive it, and still write to its profile.
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,
        server,
    ):
        log = pathlib.Path(folder) / "log"
        with log.open("wb") as file:
            browser = subprocess.Popen(
                [
                    BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu",
                    "--disable-dev-shm-usage", "--no-first-run",
                    "--disable-background-networking",
                    "--disable-component-update",
                    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE localhost",
                    f"--user-data-dir={folder}/profile",
                    "--window-size=1400,1000", "--enable-logging=stderr",
                    "--v=0", f"http://localhost:{server.server_port}/frames",
                ],
                stdout=file,
                stderr=file,
            )  # fmt: skip
            try:
                assert received.wait(timeout=300), log.read_text("utf-8")[
                    -2000:
                ]
            finally:
                browser.terminate()
                browser.wait()
                server.shutdown()
        lines = log.read_text("utf-8", errors="replace")
    return told, re.findall(r"CONSOLE[:(].*", lines)


if __name__ == "__main__":
    main()
