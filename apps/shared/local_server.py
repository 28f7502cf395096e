"""A web server for this machine alone: fixed pages, and functions of JSON.

It listens on 127.0.0.1, serves what it was given and never a file by its name.
Other web pages cannot use it through the browser: requests must name this
server as their host (a foreign name may be made to lead here, by DNS rebinding)
and come from no other origin.
"""

import http.server
import json
import sys
import traceback
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any

LARGEST_BODY = 8 * 2**20  # bytes
_DISCARDED = 64 * 2**20  # of a larger one: its sender then reads the answer
_CHUNK = 2**16
JSON = "application/json"
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; "
        "connect-src 'self'; img-src 'self' data:; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Server(http.server.ThreadingHTTPServer):
    """Listens once it is made; `serve_forever` answers.

    Attributes:
        address: the URL of its first page.
    """

    def __init__(
        self,
        port: int,
        pages: Mapping[str, tuple[str, bytes]],
        functions: Mapping[str, Callable[[Any], Any]],
    ) -> None:
        """Binds the port.

        Args:
            port: of 127.0.0.1; 0 for any free one.
            pages: by path, media type and content.
            functions: by path, from the JSON of a POST to the answer's, or
                a `BadRequestError`.

        Raises:
            OSError: if the port cannot be had.
        """
        super().__init__(("127.0.0.1", port), _Handler)
        self.pages, self.functions = pages, functions
        self.address = f"http://127.0.0.1:{self.server_port}/"
        self.hosts = {
            f"{name}{end}"
            for name in ("127.0.0.1", "localhost")
            for end in (f":{self.server_port}", *[""] * (port == 80))
        }

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Tells of errors, but not of clients that went away."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            super().handle_error(request, client_address)


class BadRequestError(ValueError):
    """Of a function: its request is at fault, and the message says why."""


class _RefusedError(Exception):
    """A status and, in plain words, why."""


class _Handler(http.server.BaseHTTPRequestHandler):
    timeout = 30  # seconds that a client may say nothing
    server_version, sys_version = "dd_keras", ""
    server: Server

    def do_GET(self):
        self._answer(self._get)

    def do_POST(self):
        self._answer(self._post)

    def _answer(self, function):
        try:
            self._check_sender()
            self._send(HTTPStatus.OK, *function())
        except _RefusedError as refusal:
            self._send_error(*refusal.args)

    def _check_sender(self):
        """Refuses what another web page may have sent."""
        hosts = self.headers.get_all("Host") or []
        if len(hosts) != 1 or hosts[0].lower() not in self.server.hosts:
            raise _RefusedError(
                HTTPStatus.FORBIDDEN,
                f"Host: expected one of {sorted(self.server.hosts)}.",
            )
        origin = self.headers.get("Origin")
        if origin not in {None, *(f"http://{h}" for h in self.server.hosts)}:
            raise _RefusedError(
                HTTPStatus.FORBIDDEN, "Origin: expected this page's own."
            )

    def _get(self):
        path = self.path.partition("?")[0]
        if path in self.server.pages:
            return self.server.pages[path]
        self._refuse_path(path, self.server.functions, "POST")

    def _post(self):
        if self.path not in self.server.functions:
            self._refuse_path(self.path, self.server.pages, "GET")
        body = self._body()
        try:
            given = json.loads(body, parse_constant=_refuse_constant)
        except (RecursionError, ValueError) as error:
            raise _RefusedError(
                HTTPStatus.BAD_REQUEST,
                "expected JSON, with finite numbers; received something else.",
            ) from error
        try:
            return JSON, encoded(self.server.functions[self.path](given))
        except BadRequestError as error:
            raise _RefusedError(HTTPStatus.BAD_REQUEST, str(error)) from error
        except Exception as error:  # whatever a model provokes
            traceback.print_exc()
            raise _RefusedError(
                HTTPStatus.INTERNAL_SERVER_ERROR,
                f"the server failed: {type(error).__name__}.",
            ) from error

    def _refuse_path(self, path, others, method):
        if path in others:
            raise _RefusedError(
                HTTPStatus.METHOD_NOT_ALLOWED, f"expected {method}.", method
            )
        raise _RefusedError(HTTPStatus.NOT_FOUND, "there is no such page.")

    def _body(self):
        """The bytes of a POST, once type and size are checked."""
        if self.headers.get_content_type() != JSON:
            raise _RefusedError(
                HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
                f"Content-Type: expected {JSON}.",
            )
        stated = self.headers.get("Content-Length", "")
        if not (stated.isascii() and stated.isdecimal() and len(stated) < 20):
            raise _RefusedError(
                HTTPStatus.LENGTH_REQUIRED,
                "Content-Length: expected the number of bytes.",
            )
        length = int(stated)
        if length > LARGEST_BODY:
            left = min(length, _DISCARDED)
            while left > 0 and (part := self.rfile.read1(min(left, _CHUNK))):
                left -= len(part)
            raise _RefusedError(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                f"expected at most {LARGEST_BODY} bytes; received {length}.",
            )
        return self.rfile.read(length)

    def _send(self, status, media_type, body, allowed=None):
        self.send_response(status)
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        if allowed is not None:
            self.send_header("Allow", allowed)
        self.send_header("Content-Type", media_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _send_error(self, status, message, allowed=None):
        self._send(status, JSON, encoded({"error": message}), allowed)

    def send_error(self, code, message=None, explain=None):
        """What the base class refuses, as JSON, too."""
        self.close_connection = True
        self._send_error(code, message or HTTPStatus(code).phrase)

    def log_message(self, *args):
        """Says nothing of each request."""


def encoded(value: Any) -> bytes:
    """A value as JSON."""
    return json.dumps(value, allow_nan=False).encode()


def _refuse_constant(name):
    raise ValueError(f"{name} is no JSON")
