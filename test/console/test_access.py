"""Who may look and who may command."""

import pytest

from vipra_ros.config import ConfigError
from vipra_ros.console.access import COOKIE, Access

TOKEN = "a-token-of-sixteen-or-more"


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.5", "::", "robot-pc"])
def test_other_addresses_than_this_machine_need_a_token(host):
    with pytest.raises(ConfigError, match="give a token file"):
        Access(host, 8090, 8091)
    assert not Access(host, 8090, 8091, TOKEN).local


def test_one_port_cannot_serve_both():
    with pytest.raises(ConfigError, match="two ports"):
        Access("127.0.0.1", 8090, 8090)


def test_only_session_or_token_command():
    access, other = Access("127.0.0.1", 8090, 8091), Access("127.0.0.1", 8090, 8091)
    assert access.may_command(access.session) and not access.may_command(other.session)
    assert not access.may_command("")  # no token is set: the empty one is none
    locked = Access("0.0.0.0", 8090, 8091, TOKEN)
    assert locked.may_command(TOKEN) and not locked.may_command(TOKEN[:-1]) and not locked.may_command("")
    assert not locked.may_command("\u00fcn\u00efcode")


def test_a_token_asks_for_the_cookie():
    locked = Access("0.0.0.0", 8090, 8091, TOKEN)
    assert not locked.may_look("") and not locked.may_look(f"{COOKIE}={TOKEN}") and not locked.may_look("a;;=\x00")
    assert locked.may_look(f"other=1; {COOKIE}={locked.session}")
    assert "SameSite=Strict" in locked.cookie() and "HttpOnly" in locked.cookie()
    assert Access("127.0.0.1", 8090, 8091).may_look("")


def test_names_that_a_stranger_points_here_are_refused():
    access = Access("127.0.0.1", 8090, 8091)
    for host in ("127.0.0.1:8091", "localhost:8090", "[::1]:8091", "localhost"):
        assert access.knows(host), host
    for host in ("evil.example:8091", "", "127.0.0.1.evil.example"):
        assert not access.knows(host), host


def test_only_our_own_page_is_ours():
    access = Access("127.0.0.1", 8090, 8091)
    assert access.own_page("http://localhost:8090", "localhost:8091")
    for origin in ("http://localhost:8092", "https://localhost:8090", "http://evil.example:8090", "null", ""):
        assert not access.own_page(origin, "localhost:8091"), origin


@pytest.mark.parametrize("port", (0, 65535, -3))
def test_a_port_that_is_none_is_named(port):
    with pytest.raises(ConfigError, match="ports are 1 to 65535.*--port"):
        Access("127.0.0.1", port, port + 1)
