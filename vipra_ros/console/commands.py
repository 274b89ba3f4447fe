"""What the page asks for, by HTTP POST, on a port of its own: STOP, the dead-man, and everything else that acts.

A thread a connection, from the standard library: nothing here waits for the loop that draws the page, for its video
or for another command. A page holds no connection to this port for long, so that browsers, which open six to one
port and queue the rest, always have one left for STOP.
"""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from vipra_ros.console.access import HEADER, Access
from vipra_ros.console.deadman import DeadMan

#: Bytes of a command; an instruction has some hundred.
MOST = 4096
#: s after which a silent connection is closed.
IDLE = 10.0
#: (name, text) -> (done, what to tell the operator); may block, a thread of its own calls it.
Act = Callable[[str, str], tuple[bool, str]]


class CommandServer(ThreadingHTTPServer):
    """POST /stop, /command {"name", "text"} and /deadman {"do", "holder", "ticket"}; JSON answers.

    Args:
        access: who may.
        act: does the commands; `("stop", "")` for STOP.
        deadman: the button.

    Raises:
        ConfigError: the port is taken.
    """

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, access: Access, act: Act, deadman: DeadMan):
        self.access, self.act, self.deadman = access, act, deadman
        if ":" in access.host:
            self.address_family = socket.AF_INET6
        try:
            super().__init__((access.host, access.commands), _Handler)
        except OSError as error:
            raise access.taken(error) from None
        self._thread = threading.Thread(target=self.serve_forever, name="commands", daemon=True,
                                        kwargs={"poll_interval": 0.1})

    def __enter__(self) -> CommandServer:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.shutdown()
        self.server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection that ends in the middle of a request is nobody's fault."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version, server_version, sys_version = "HTTP/1.1", "vipra", ""
    disable_nagle_algorithm = True  # an answer of two small packets would wait 40 ms for the other side
    timeout = IDLE
    server: CommandServer

    def do_OPTIONS(self) -> None:
        """A browser asks whether a page of another port may; ours may."""
        self._answer(204 if self._ours() else 403, None)

    def do_POST(self) -> None:
        """One command."""
        if not self._ours():
            self.close_connection = True
            return self._answer(403, {"done": False, "message": "not from this page"})
        if not self.server.access.may_command(self.headers.get(HEADER, "")):
            self.close_connection = True  # its body is not read
            return self._answer(401, {"done": False, "message": f"no valid {HEADER}; load the page again"})
        if self.path == "/stop":  # whatever the body is
            self.close_connection = True
            self.server.deadman.release()
            return self._do("stop", "")
        try:
            asked = self._body()
        except ValueError as error:
            self.close_connection = True
            return self._answer(400, {"done": False, "message": str(error)})
        if self.path == "/command":
            return self._do(asked.get("name", ""), asked.get("text", ""))
        if self.path == "/deadman":
            return self._hold(asked)
        self._answer(404, {"done": False, "message": "POST /stop, /command or /deadman"})

    def _do(self, name: str, text: str) -> None:
        done, message = self.server.act(name, text)
        self._answer(200 if done else 409, {"done": done, "message": message})

    def _hold(self, asked: dict[str, Any]) -> None:
        deadman, holder = self.server.deadman, asked.get("holder", "")
        try:
            if asked.get("do") == "press":
                holder, ticket = deadman.press()
            elif asked.get("do") == "renew":
                ticket = deadman.renew(holder, float(asked.get("ticket", "nan")))
            else:
                deadman.release(holder or "nobody")
                ticket = 0.0
        except (PermissionError, ValueError, TypeError) as error:
            return self._answer(409, {"done": False, "message": str(error)})
        self._answer(200, {"done": True, "holder": holder, "ticket": ticket})

    def _ours(self) -> bool:
        host, origin = self.headers.get("Host", ""), self.headers.get("Origin")
        access = self.server.access
        return access.knows(host) and (origin is None or access.own_page(origin, host))

    def _body(self) -> dict[str, Any]:
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) > MOST:
            raise ValueError(f"a body of at most {MOST} bytes is needed")
        try:
            asked = json.loads(self.rfile.read(int(length)) or b"{}")
        except (ValueError, RecursionError):
            raise ValueError("the body is no JSON") from None
        texts = ("name", "text", "holder")
        if not isinstance(asked, dict) or not all(isinstance(asked.get(k, ""), str) for k in texts):
            raise ValueError("the body is a JSON object with texts")
        return asked

    def _answer(self, status: int, content: dict[str, Any] | None) -> None:
        body = b"" if content is None else json.dumps(content).encode()
        self.send_response(status)
        origin = self.headers.get("Origin")
        if origin and self._ours():
            self.send_header("Access-Control-Allow-Origin", origin)
            self.send_header("Access-Control-Allow-Headers", f"Content-Type, {HEADER}")
            self.send_header("Access-Control-Allow-Methods", "POST")
            self.send_header("Access-Control-Max-Age", "7200")
            self.send_header("Vary", "Origin")
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Twenty renewals a second are no news."""
