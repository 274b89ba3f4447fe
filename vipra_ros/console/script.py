"""What runs in the browser: posting commands, the dead-man's proofs, pictures that never queue; and the look.

Nothing here depends on the page's websocket: STOP and hold-to-run work while it, the video or Python's loop stalls.
"""

from __future__ import annotations

import json

from vipra_ros.console.access import HEADER, Access

STYLE = """
:root { --line: #2b3742; --dim: #93a1ad; }
body, .nicegui-content { background: #11181f; color: #e8eef2; margin: 0; padding: 0; overscroll-behavior: none; }
.v-grid { display: grid; gap: 10px; padding: 10px 12px 126px; width: 100%; box-sizing: border-box;
  grid-template-columns: minmax(0, 1.15fr) minmax(0, 1fr);
  grid-template-areas: "banner banner" "eyes acts" "plots acts";
  align-items: start; }
.v-banner { grid-area: banner; border-radius: 10px; padding: 6px 16px; display: grid; gap: 2px 20px; min-height: 92px;
  grid-template-columns: auto minmax(0, 1fr); align-items: center; }
.v-state { font-size: 54px; font-weight: 800; line-height: 1; letter-spacing: .02em; }
.v-reasons { font-size: 18px; line-height: 1.25; white-space: pre-line; max-height: 70px; overflow: hidden; }
.v-detail { grid-column: 1 / -1; font-size: 14px; opacity: .9; }
.v-eyes { grid-area: eyes; display: grid; gap: 10px; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); }
.v-eye { position: relative; background: #000; border-radius: 8px; overflow: hidden; aspect-ratio: 1; }
.v-eye img { width: 100%; height: 100%; object-fit: fill; display: block; image-rendering: auto; }
.v-plan { position: absolute; inset: 0; width: 100%; height: 100%; pointer-events: none; }
.v-name { position: absolute; left: 8px; top: 6px; font-size: 13px; text-shadow: 0 0 4px #000, 0 0 4px #000; }
.v-blind { position: absolute; inset: auto 0 0 0; background: #b3261e; text-align: center; font-size: 16px;
  font-weight: 700; padding: 4px; }
.v-blind:empty { display: none; }
.v-acts { grid-area: acts; display: flex; flex-direction: column; gap: 10px; }
.v-plots { grid-area: plots; display: grid; gap: 10px; grid-template-columns: minmax(0, 1fr) minmax(0, 1fr); }
.v-card { background: #18222b; border: 1px solid var(--line); border-radius: 10px; padding: 8px 12px; }
.v-card h3 { font-size: 13px; line-height: 1.3; margin: 0 0 4px; color: var(--dim); font-weight: 600; }
.v-joints { width: 100%; display: block; }
.v-axis { fill: #b8c4ce; font-size: 17px; font-family: monospace; }
.v-spark { width: 100%; height: 26px; display: block; }
.v-number { display: flex; justify-content: space-between; font-size: 13px; color: var(--dim); line-height: 1.3; }
.v-number b { color: #e8eef2; font-variant-numeric: tabular-nums; }
.v-buttons { display: grid; grid-template-columns: repeat(4, minmax(0, 1fr)); gap: 8px; }
.v-buttons button, .v-act { min-height: 52px; border: 0; border-radius: 8px; font-size: 17px; font-weight: 700;
  color: #fff; background: #31414f; cursor: pointer; touch-action: manipulation; width: 100%; }
.v-buttons button:active, .v-act:active { filter: brightness(1.4); }
.v-buttons .v-arm { background: #11758a; } .v-buttons .v-good { background: #1b8a4b; }
.v-buttons .v-bad { background: #b06d00; }
.v-held { min-height: 84px; border: 3px solid #4dd0e1; border-radius: 10px; background: #14303a; color: #fff;
  font-size: 24px; font-weight: 800; width: 100%; touch-action: none; user-select: none; -webkit-user-select: none;
  cursor: pointer; line-height: 1.15; }
.v-held small { display: block; font-size: 14px; font-weight: 500; opacity: .85; }
.v-held[data-state=held] { background: #1b8a4b; border-color: #9be7b8; }
.v-words { display: flex; gap: 8px; } .v-words input { flex: 1; min-width: 0; min-height: 48px; font-size: 17px;
  padding: 0 12px; border-radius: 8px; border: 1px solid #40505e; background: #0e151b; color: #fff; }
.v-words button { width: auto; padding: 0 18px; }
.v-line { font-size: 14px; color: var(--dim); line-height: 1.3; overflow-wrap: anywhere; margin-top: 4px; }
.v-line:empty { display: none; } .v-asked { white-space: pre-line; min-height: 60px; }
.v-asked b { display: block; color: #e8eef2; font-size: 17px; }
.v-trial button { opacity: .35; }
.v-go [data-command=trial_start], .v-label button:not([data-command=trial_start]) { opacity: 1; }
.v-stop { position: fixed; left: 12px; right: 12px; bottom: 10px; height: 104px; border: 4px solid #ffd7d2;
  border-radius: 14px; background: #d50000; color: #fff; font-size: 60px; font-weight: 900; letter-spacing: .25em;
  text-indent: .25em; z-index: 9000; cursor: pointer; touch-action: none; user-select: none; line-height: 1; }
.v-stop:active { background: #ff5252; }
.v-answer { position: fixed; left: calc(53.5% + 4px); right: 12px; bottom: 118px; z-index: 9001; pointer-events: none;
  padding: 7px 16px; border-radius: 8px; font-size: 16px; line-height: 1.25; background: #0b4f2b; color: #fff;
  text-align: center; display: none; }
.v-answer[data-kind=bad] { background: #8c1d18; } .v-answer[data-kind] { display: block; }
.v-stale { position: fixed; inset: auto 12px 118px 12px; border-radius: 8px;
  z-index: 9002; background: #ffb300; color: #000; font-size: 20px;
  font-weight: 700; text-align: center; padding: 10px; display: none; }
.v-stale[data-on] { display: block; }
@media (max-aspect-ratio: 1/1) {
  .v-grid { grid-template-columns: minmax(0, 1fr); grid-template-areas: "banner" "eyes" "acts" "plots"; }
  .v-eyes { grid-template-columns: repeat(2, minmax(0, 1fr)); }
  .v-eyes { width: min(100%, 650px); justify-self: center; }
  .v-answer { left: 12px; }
}
@media (max-width: 600px) { .v-answer { top: 114px; bottom: auto; } }
"""

SCRIPT = """
(() => {
  const base = `${location.protocol}//${location.hostname}:${VIPRA.port}`;
  const post = (path, body) => fetch(base + path, {method: 'POST', cache: 'no-store',
    headers: {'Content-Type': 'application/json', [VIPRA.header]: VIPRA.token}, body: JSON.stringify(body || {})})
    .then(async answer => ({status: answer.status, ...await answer.json()}));
  let shown = 0;
  const say = (text, kind) => {
    const line = document.querySelector('.v-answer');
    line.textContent = text; line.dataset.kind = kind;
    const mine = ++shown;
    setTimeout(() => { if (mine === shown) delete line.dataset.kind; }, kind === 'bad' ? 8000 : 3000);
  };
  const ask = (path, body, what) => {
    post(path, body).then(a => say(`${what}: ${a.message}`, a.done ? 'good' : 'bad'))
      .catch(() => say(`${what}: the console does not answer` +
                       (path === '/stop' ? '. USE THE EMERGENCY STOP' : ''), 'bad'));
  };
  const stop = () => { letGo(); ask('/stop', {}, 'STOP'); };

  // Hold-to-run: the next proof is sent when the last one was answered, at most ten a second.
  let press = 0, holder = '', released = Promise.resolve();
  const release = name => { released = post('/deadman', {do: 'release', holder: name}).catch(() => {}); };
  const mark = state => { const b = document.querySelector('[data-hold]'); if (b) b.dataset.state = state; };
  const hold = async () => {
    letGo();
    const mine = press;
    mark('asked');
    try {
      await released;  // or we would be the other page that holds it
      if (mine !== press) return;
      let a = await post('/deadman', {do: 'press'});
      if (mine !== press) { if (a.done) release(a.holder); return; }
      if (a.done) holder = a.holder;
      while (mine === press && a.done) {
        const began = performance.now();
        a = await post('/deadman', {do: 'renew', holder, ticket: a.ticket});
        if (mine !== press) return;
        if (a.done) mark('held');
        await new Promise(done => setTimeout(done, Math.max(0, 100 - (performance.now() - began))));
      }
      if (mine === press) { letGo(); say(`hold to run: ${a.message}`, 'bad'); }
    } catch (e) {
      if (mine === press) { letGo(); say('hold to run: the console does not answer; released', 'bad'); }
    }
  };
  const letGo = () => {
    press++;
    mark('free');
    if (holder) { release(holder); holder = ''; }
  };

  const typing = e => ['INPUT', 'TEXTAREA'].includes(e.target.tagName);
  document.addEventListener('pointerdown', e => {
    if (e.target.closest('[data-stop]')) { e.preventDefault(); stop(); }
    const button = e.target.closest('[data-hold]');
    if (button && e.button === 0) { e.preventDefault(); button.setPointerCapture(e.pointerId); hold(); }
  });
  for (const kind of ['pointerup', 'pointercancel', 'lostpointercapture'])
    document.addEventListener(kind, e => { if (e.target.closest && e.target.closest('[data-hold]')) letGo(); });
  document.addEventListener('contextmenu', e => {
    if (e.target.closest('[data-hold],[data-stop]')) e.preventDefault();
  });
  window.addEventListener('blur', letGo);
  window.addEventListener('pagehide', letGo);
  document.addEventListener('visibilitychange', () => { if (document.hidden) letGo(); });
  document.addEventListener('keydown', e => {
    if ((e.code === 'Space' || e.key === 'Enter') && e.target.closest('[data-stop]')) {
      e.preventDefault();
      if (!e.repeat) stop();
      return;
    }
    if (e.key === 'Escape') { e.preventDefault(); if (!e.repeat) stop(); }
    else if (e.code === 'Space' && !typing(e)) { e.preventDefault(); if (!e.repeat) hold(); }
    else if (e.key === 'Enter' && e.target.matches('[data-words]')) words();
  });
  // Wherever the focus went meanwhile: a space bar that is up holds nothing, and who writes cannot hold it.
  document.addEventListener('keyup', e => {
    if (e.code === 'Space') { if (!typing(e)) e.preventDefault(); letGo(); }
  });
  document.addEventListener('focusin', e => { if (typing(e)) letGo(); });
  const words = () => {
    const box = document.querySelector('[data-words]');
    box.blur();
    ask('/command', {name: 'instruction', text: box.value}, 'instruction');
  };
  document.addEventListener('click', e => {
    if (e.target.closest('[data-stop]') && e.detail === 0) stop();  // assistive: a click without a pointer
    const button = e.target.closest('[data-command]');
    if (!button) return;
    button.blur();  // the space bar is the dead-man's, not a second press of this button
    if (button.dataset.command === 'instruction') words();
    else ask('/command', {name: button.dataset.command}, button.textContent.trim());
  });

  // Pictures: the next is asked for when the last is there, so a slow network means fewer, never older ones.
  const look = img => {
    const began = performance.now(), next = (seen, wait) => {
      img.style.opacity = seen;
      setTimeout(() => look(img), Math.max(0, wait));
    };
    img.onload = () => next(1, 66 - (performance.now() - began));
    img.onerror = () => next(0, 500);
    img.src = `/camera/${img.dataset.camera}?${Date.now()}`;
  };
  setInterval(() => document.querySelectorAll('img[data-camera]:not([data-on])').forEach(img => {
    img.dataset.on = '1'; look(img);
  }), 200);

  // The page's own pulse: what is drawn may be old although it looks alive.
  let beat = '', since = performance.now();
  setInterval(() => {
    const node = document.querySelector('.v-beat'), text = node ? node.textContent : '';
    if (text !== beat) { beat = text; since = performance.now(); }
    const line = document.querySelector('.v-stale');
    if (line) line.toggleAttribute('data-on', performance.now() - since > 2500);
  }, 250);
  window.addEventListener('DOMContentLoaded', () => { since = performance.now(); });
})();
"""

FIXED = """
<button class="v-stop" data-stop>STOP</button>
<div class="v-answer" role="status"></div>
<div class="v-stale">What you see is old: the page gets no news. STOP and hold-to-run go another way.</div>
"""

LOGIN = """<!doctype html><html lang="en"><meta charset="utf-8"><title>vipra console</title>
<meta name="viewport" content="width=device-width"><style>
body { background: #11181f; color: #e8eef2; font: 18px sans-serif; display: grid; place-items: center; height: 90vh; }
form { display: grid; gap: 12px; width: min(90vw, 380px); } input, button { font-size: 18px; padding: 12px;
border-radius: 8px; border: 1px solid #40505e; } button { background: #11758a; color: #fff; }</style>
<form method="post" action="/login"><b>vipra console</b><label for="token">Token of this console</label>
<input id="token" name="token" type="password" autofocus autocomplete="current-password">
<button>Open</button><span>%s</span></form></html>"""


def head(access: Access) -> str:
    """What the page carries in its head: look, secret of the session, behaviour."""
    values = json.dumps({"token": access.session, "port": access.commands, "header": HEADER})
    return f"<style>{STYLE}</style><script>const VIPRA = {values};{SCRIPT}</script>"
