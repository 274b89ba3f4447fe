"""The page's behaviour in node, with a page that is made up (skipped without node)."""

import json
import shutil
import subprocess

import pytest

from vipra_ros.console.script import SCRIPT

NODE = shutil.which("node")
pytestmark = pytest.mark.skipif(NODE is None, reason="no node")

#: What the script touches of a browser. `server` answers a post, `on(KIND, event)` happens, `posted` is what was asked.
PAGE = """
const VIPRA = {port: 1, header: 'X', token: 't'}, posted = [], listeners = {}, place = {}, none = () => {};
const listen = (kind, f) => (listeners[kind] ||= []).push(f);
const node = {dataset: {}, textContent: '', blur: none, toggleAttribute: none, setPointerCapture: none};
const location = {protocol: 'http:', hostname: 'localhost'};
const document = {addEventListener: listen, querySelector: () => node, querySelectorAll: () => [], hidden: false};
const window = {addEventListener: listen};
const setInterval = none;
const pause = ms => new Promise(done => setTimeout(done, ms));
let server = async () => ({done: true, message: 'ok'});
const fetch = async (url, {body}) => {
  const asked = {path: new URL(url).pathname, ...JSON.parse(body)};
  posted.push(asked);
  const answer = await server(asked);
  return {status: 200, json: async () => answer};
};
const target = selector => ({tagName: 'BUTTON', dataset: {}, matches: s => s === selector,
                             closest: s => s.split(',').includes(selector) ? node : null});
const on = (kind, selector, event) => (listeners[kind] || []).forEach(
  f => f({target: target(selector), preventDefault: none, repeat: false, ...event}));
"""


def posted(happens):
    """What the page posts while `happens`, the body of an async function, goes on."""
    code = f"{PAGE}\n{SCRIPT}\n(async () => {{{happens}; console.log(JSON.stringify(posted)); process.exit(0)}})()"
    done = subprocess.run([NODE, "-e", code], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("happens", ("on('keydown', '[data-stop]', {key: 'Enter', code: 'Enter'})",
                                     "on('keydown', '[data-stop]', {key: ' ', code: 'Space'})",
                                     "on('click', '[data-stop]', {detail: 0})",
                                     "on('pointerdown', '[data-stop]', {}); on('click', '[data-stop]', {detail: 1})"))
def test_stop_is_asked_once_by_every_way_to_press_it(happens):
    assert [p["path"] for p in posted(happens + "; await pause(20)")] == ["/stop"]


#: A server that names who presses, each answer after 10 ms.
SERVER = """
let pressed = 0;
server = async asked => { await pause(10); if (asked.do === 'press') pressed++;
                          return {done: true, holder: `h${pressed}`, ticket: 1}; };
const down = () => on('pointerdown', '[data-hold]', {button: 0}), up = () => on('pointerup', '[data-hold]', {});
"""


def test_who_lets_go_and_presses_again_is_no_other_page():
    happens = "down(); await pause(50); up(); down(); await pause(60)"
    done = [(p["do"], p.get("holder")) for p in posted(SERVER + happens)]
    assert done == [("press", None), ("renew", "h1"), ("release", "h1"), ("press", None), ("renew", "h2")]


def test_a_press_that_is_answered_after_the_release_holds_nothing():
    done = [(p["do"], p.get("holder")) for p in posted(SERVER + "down(); await pause(5); up(); await pause(60)")]
    assert done == [("press", None), ("release", "h1")]
