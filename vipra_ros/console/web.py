"""The page's server in a thread of its own, behind a guard that asks every request who it is."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import parse_qs

from vipra_ros.console.access import Access
from vipra_ros.console.script import LOGIN

#: s that a wrong token costs.
PENALTY = 1.0
#: Bytes of a login form.
MOST = 4096
#: No frame of another page may lie over these buttons, and nothing is kept by proxies.
HEADERS = [(b"x-frame-options", b"DENY"), (b"content-security-policy", b"frame-ancestors 'none'"),
           (b"referrer-policy", b"no-referrer"), (b"x-content-type-options", b"nosniff")]


class Guard:
    """ASGI middleware: Host and Origin are ours, and where a token is set the session's cookie is there."""

    def __init__(self, app: Callable[..., Awaitable[None]], access: Access):
        self.app, self.access = app, access

    async def __call__(self, scope: dict[str, Any], receive: Callable, send: Callable) -> None:
        """One request or websocket."""
        if scope["type"] not in ("http", "websocket"):
            return await self.app(scope, receive, send)
        given = {k: v.decode("latin-1") for k, v in scope["headers"]}
        host, origin = given.get(b"host", ""), given.get(b"origin")
        if not self.access.knows(host) or (origin not in (None, "null") and not self.access.own_page(origin, host)):
            return await _refuse(scope, send, 403, "not for this page\n")
        if scope["type"] == "http" and scope["path"] == "/login" and scope["method"] == "POST":
            return await self._login(receive, send, origin)
        if not self.access.may_look(given.get(b"cookie", "")):
            if scope["type"] == "http" and scope["path"] == "/":
                return await _say(send, 401, LOGIN % "", "text/html; charset=utf-8")
            return await _refuse(scope, send, 401, "open / and give the token\n")

        async def sealed(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), *HEADERS]
            await send(message)

        await self.app(scope, receive, sealed)

    async def _login(self, receive: Callable, send: Callable, origin: str | None) -> None:
        body, more = b"", True
        while more and len(body) <= MOST:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        text = parse_qs(body[:MOST].decode("utf-8", "replace")).get("token", [""])[0]
        if not self.access.is_token(text):
            await asyncio.sleep(PENALTY)
            return await _say(send, 401, LOGIN % "That is not the token.", "text/html; charset=utf-8")
        extra = [(b"location", b"/"), (b"set-cookie", self.access.cookie().encode())]
        await _say(send, 303, "", "text/plain", extra)


async def _say(send: Callable, status: int, text: str, kind: str, extra: list = ()) -> None:
    body = text.encode()
    headers = [(b"content-type", kind.encode()), (b"content-length", str(len(body)).encode()), *HEADERS, *extra]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _refuse(scope: dict[str, Any], send: Callable, status: int, text: str) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008})
    else:
        await _say(send, status, text, "text/plain")


class PageServer:
    """Serves an ASGI application at the access' address until it is left.

    Raises:
        ConfigError: the port is taken, or the address is not this machine's.
    """

    def __init__(self, app: Callable, access: Access):
        import uvicorn

        family = socket.AF_INET6 if ":" in access.host else socket.AF_INET
        try:
            self._socket = socket.create_server((access.host, access.port), family=family)
        except OSError as error:
            raise access.taken(error) from None
        config = uvicorn.Config(Guard(app, access), log_level="warning", access_log=False, timeout_graceful_shutdown=1)
        self._server = uvicorn.Server(config)
        self.loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name="page", daemon=True)

    @property
    def alive(self) -> bool:
        """Whether it serves."""
        return self._thread.is_alive()

    def __enter__(self) -> PageServer:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._server.should_exit = True
        self._thread.join(timeout=3.0)
        self._socket.close()

    def _run(self) -> None:
        async def serve() -> None:
            self.loop = asyncio.get_running_loop()
            await self._server.serve(sockets=[self._socket])

        asyncio.run(serve())
