"""A server by REST that answers whatever a test wants, and its client."""

import contextlib
import http.server
import io
import threading

from absl import flags
from conftest import imported


class Answers(http.server.BaseHTTPRequestHandler):
    """Answers each request with the next of `server.answers`: (status, body).

    A body is bytes, or an iterator of them.
    """

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        status, body = self.server.answers.pop(0)
        self.send_response(status)
        self.end_headers()
        with contextlib.suppress(OSError):  # the client has enough
            for part in [body] if isinstance(body, bytes) else body:
                self.wfile.write(part)

    def log_message(self, *arguments):
        pass


@contextlib.contextmanager
def answering():
    """A server whose `answers` are to be chosen."""
    with http.server.ThreadingHTTPServer(("localhost", 0), Answers) as web:
        threading.Thread(target=web.serve_forever, daemon=True).start()
        yield web
        web.shutdown()


def asked(web, paths, *answers, more=()):
    """What the client prints, in this process, and how it ends."""
    web.answers = list(answers)
    arguments = [
        *("client.py", "--model=m", f"--server=localhost:{web.server_port}"),
        *more,
        *map(str, paths),
    ]
    printed = io.StringIO()
    with imported("client") as module, contextlib.redirect_stdout(printed):
        module.main(flags.FLAGS(arguments))
    return printed.getvalue()
