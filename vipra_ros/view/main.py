"""The command `vipra view`: write the recording, open a viewer only when asked."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

from vipra_ros.config import ConfigError
from vipra_ros.view.sources import look


def main(source: str, episode: int = 0, save: str = "", open_viewer: bool = False, web: bool = False,
         profile: str = "", namespace: str = "") -> int:
    """Write SOURCE as a rerun recording.

    Args:
        save: file; NAME.rrd in this folder when empty.
        open_viewer: show it in the rerun viewer. web: in a browser, from a server at 127.0.0.1, until Ctrl-C.

    Raises:
        ConfigError: nothing to be seen at `source`, or no display to show it on.
    """
    if open_viewer and not web and sys.platform == "linux" and not {"DISPLAY", "WAYLAND_DISPLAY"} & set(os.environ):
        raise ConfigError("no display; use --web")
    seen = look(source, episode, profile, namespace)
    from vipra_ros.view.rrd import write  # needs rerun; a wrong SOURCE is told without it

    path = Path(save or f"{seen.name}.rrd")
    rows = write(seen, path)
    cameras = ", ".join(f"{c} {rows.get(f'camera/{c}', 0)}" for c in seen.cameras) or "none"
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB, {len(rows)} entities; pictures: {cameras}; "
          f"{len(seen.chunks)} chunks, {rows.get('log', 0)} lines of states and reasons")
    if not open_viewer and not web:
        which = f" --episode {episode}" if episode else ""
        which += f" --namespace {shlex.quote(namespace)}" if namespace else ""
        print(f"look at it with: vipra view {shlex.quote(source)}{which} --open (or --web), "
              f"or rerun {shlex.quote(str(path))}")
        return 0
    # By itself a viewer would listen on all interfaces, whether it runs in a browser or in a window.
    options = ["--bind", "127.0.0.1", *(["--web-viewer"] if web else [])]
    return subprocess.run([sys.executable, "-m", "rerun", *options, str(path)], check=False).returncode
