"""Who may look at the console, and who may command: the address, the token, the session's secret.

Looking needs the session's cookie where a token is set. Commanding needs a header that no page of another origin can
send without being asked first (a CORS preflight, answered for our own page alone), whatever cookies the browser has.
"""

from __future__ import annotations

import errno
import hmac
import ipaddress
import secrets
from dataclasses import dataclass, field
from http.cookies import CookieError, SimpleCookie

from vipra_ros.config import ConfigError

COOKIE = "vipra_console"
HEADER = "X-Vipra-Token"


@dataclass(frozen=True)
class Access:
    """Address and secrets of one console.

    Attributes:
        host: address listened at.
        port: of the page.
        commands: port of the commands, on the same host.
        token: what the operator types in; empty on a loopback address only.
        session: made anew at every start; in the cookie and in the page.
    """

    host: str
    port: int
    commands: int
    token: str = ""
    session: str = field(default_factory=lambda: secrets.token_urlsafe(32), repr=False)

    def __post_init__(self) -> None:
        if not (self.local or self.token):
            raise ConfigError(
                f"host {self.host}: others than this machine could move the arm; give a token file, "
                f"or stay at 127.0.0.1"
            )
        for port in (self.port, self.commands):
            if not 1 <= port <= 65535:
                raise ConfigError(f"port {port}: ports are 1 to 65535, and the commands have the one after the "
                                  "page's; give another (--port)")
        if self.port == self.commands:
            raise ConfigError(f"port {self.port} cannot serve page and commands; give two ports")

    def taken(self, error: OSError) -> ConfigError:
        """Why a port of ours cannot be listened at."""
        if error.errno == errno.EADDRINUSE:
            return ConfigError(f"another program, perhaps another console, uses port {self.port} or {self.commands} of "
                               f"{self.host}; end it, or give another one (--port)")
        return ConfigError(f"cannot listen at {self.host}: {error.strerror}; give another host or port")

    @property
    def local(self) -> bool:
        """Whether only this machine can connect."""
        return loopback(self.host)

    def is_token(self, text: str) -> bool:
        """Whether `text` is the token; in constant time."""
        return bool(self.token) and hmac.compare_digest(text.strip().encode(), self.token.encode())

    def may_look(self, cookies: str) -> bool:
        """Whether a request with this Cookie header may see the page."""
        if not self.token:
            return True
        try:
            found = SimpleCookie(cookies).get(COOKIE)
        except CookieError:
            return False
        return found is not None and hmac.compare_digest(found.value.encode(), self.session.encode())

    def may_command(self, header: str) -> bool:
        """Whether a request with this `HEADER` may command."""
        return hmac.compare_digest(header.encode(), self.session.encode()) or self.is_token(header)

    def knows(self, host: str) -> bool:
        """Whether a Host header names us: on loopback, a name that a stranger's DNS points here is refused."""
        name = host.rsplit(":", 1)[0] if not host.endswith("]") else host
        return not self.local or name == "localhost" or loopback(name.strip("[]"))

    def own_page(self, origin: str, host: str) -> bool:
        """Whether an Origin header is that of our page, as seen by a browser that calls us `host`."""
        name = host.rsplit(":", 1)[0] if not host.endswith("]") else host
        return origin == f"http://{name}:{self.port}" or (self.port == 80 and origin == f"http://{name}")

    def cookie(self) -> str:
        """Set-Cookie header of a session."""
        return f"{COOKIE}={self.session}; Path=/; HttpOnly; SameSite=Strict"


def loopback(host: str) -> bool:
    """Whether an address or name stays on this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
