"""The flight recorder: what it remembers, what a fault leaves on disk, and what is read back from it."""

import json
import resource
import threading
import time

import numpy as np
import pytest

from vipra_ros.control.chunk import ActionChunk, RobotState
from vipra_ros.control.executor import ExecutorCore, ExecutorSettings
from vipra_ros.control.flight import KEPT, FlightRecorder
from vipra_ros.control.guard import FaultCode
from vipra_ros.control.profile import load_profile
from vipra_ros.control.sinks import PreviewArm, PreviewHand, PreviewSink
from vipra_ros.data import incident, incident_show
from vipra_ros.data.bags import BagError, EpisodeReader

T = 1 / 15
PROFILE = load_profile("fr3")


class Flown:
    """A core in fake time with a recorder, driven over a few seconds of chunks."""

    def __init__(self, rate=50.0, **settings):
        self.now, self.rate, self.error, self.ids = 100.0, rate, "", 0
        self.settings = ExecutorSettings(**settings)
        self.flight = FlightRecorder(rate)
        self.arm = PreviewArm(PROFILE.home_q, lambda: self.now)
        self.core = ExecutorCore(PROFILE, self.settings, PreviewSink(), PreviewHand(), flight=self.flight)
        self.arm.core = self.core
        self.tick()

    def tick(self):
        s = self.arm.state()
        self.core.tick(self.now, RobotState(s.time, s.q, s.dq, s.q_d, s.dq_d, in_control=True, error=self.error))
        self.now += 1 / self.rate

    def fly(self, seconds, speed=0.3, spoil=False):
        if self.core.machine.state.name == "IDLE":
            assert self.core.arm(self.now).success
        end, due = self.now + seconds, self.now
        while self.now < end:
            if self.now >= due:
                self.ids += 1
                start = self.core.reference().at(self.now)[0]
                rows = np.array([np.append(start + speed * (k + 1) * T * np.eye(7)[6], 1.0) for k in range(14)])
                if spoil:
                    rows[3, 2] = np.nan
                self.core.offer(ActionChunk(self.now, self.ids, T, rows[:7], rows[7:],
                                            joint_names=PROFILE.joint_names, epoch=self.core.epoch), self.now)
                due += 4 * T
            self.tick()

    def fail(self):
        self.error = "joint_reflex"
        self.tick()
        self.tick()


def write(flown, folder, **changes):
    folder.mkdir(exist_ok=True)
    return incident.write(flown.flight.copy(), folder, PROFILE, flown.flight.fault_time, settings=flown.settings,
                          clock_ns=10**18, **changes)


def test_the_ring_keeps_the_last_seconds_and_no_more():
    flown = Flown(rate=20.0)
    flown.fly(1.0)
    size = flown.flight._rows.nbytes
    flown.core.stop(flown.now)
    for _ in range(int(20.0 * (KEPT + 5))):
        flown.tick()
    copy = flown.flight.copy()
    times = copy.column("time")
    assert flown.flight._rows.nbytes == size
    assert KEPT - 0.5 < np.ptp(times) <= KEPT + 0.5 and np.all(np.diff(times) > 0)
    assert times[-1] == pytest.approx(flown.now - 1 / 20.0) and not copy.chunks, "chunks older than that are gone"
    assert np.allclose(copy.column("q")[-1], copy.column("q_ref")[-1])


def test_a_copy_beside_a_running_loop_is_in_order():
    flown = Flown(rate=20.0)
    threading.Thread(target=lambda: [flown.tick() for _ in range(3000)], daemon=True).start()
    for _ in range(30):
        assert np.all(np.diff(flown.flight.copy().column("time")) > 0)
        time.sleep(0.005)


def test_a_fault_is_a_bag_that_tells_the_story(tmp_path, capsys):
    flown = Flown()
    flown.fly(0.6, speed=2.0)
    flown.fly(0.5)
    flown.fly(0.5, spoil=True)
    flown.fail()
    assert flown.core.machine.faults[0].code is FaultCode.ROBOT and flown.flight.incidents == 1
    path = write(flown, tmp_path / "in")
    with EpisodeReader(path) as bag:
        counts = bag.counts
    assert counts["joint_states"] == counts["executor/joint_command"] == counts["flight/figures"] > 70
    assert counts["policy/chunk"] == counts["flight/verdict"] == flown.ids
    told = incident_show.read(path)
    lines = incident_show.story(told)
    texts = [text for _, text in lines]
    order = [next(i for i, t in enumerate(texts) if w in t)
             for w in ("RUNNING", "accepted", "not finite", "FAULT: robot error")]
    fault = order[-1]
    assert order[0] < order[2] < fault and order[1] < order[2]
    assert [t for t, _ in lines] == sorted(t for t, _ in lines) and abs(lines[fault][0]) < 0.05
    touched = incident_show.limits_touched(told)
    assert any(t.startswith("joint7: velocity") for t in touched) and any("REACH" in t for t in touched), touched
    incident_show.main(str(path), str(tmp_path / "plot.png"))
    said = capsys.readouterr().out
    assert "robot error: joint_reflex" in said and " joint7 " in said and "limits touched" in said
    table = said.partition("at the fault")[2].partition("limits touched")[0].splitlines()
    assert max(map(len, table)) <= 80 and "\u2026" not in "".join(table)
    assert (tmp_path / "plot.png").stat().st_size > 10_000
    incident_show.main(str(path), json=True)
    told = json.loads(capsys.readouterr().out)
    assert told["faults"][0]["code"] == "robot error" and any("REACH" in s["text"] for s in told["story"])


def test_what_is_no_incident_is_said(tmp_path):
    with pytest.raises(BagError, match="nowhere"):
        incident_show.read(tmp_path / "nowhere")


def run_writer(flown, folder, during=lambda writer: None, **settings):
    said = []
    chosen = ExecutorSettings(incident_folder=str(folder), **settings)
    with incident.IncidentWriter(flown.flight, PROFILE, chosen, said.append) as writer:
        flown.fail()
        during(writer)
    return writer, said


def test_the_writer_keeps_the_newest_and_touches_nothing_else(tmp_path):
    (tmp_path / "episode").mkdir()
    for day in ("20200101", "20200102", "20200103"):
        (tmp_path / f"incident-{day}-000000-000").mkdir()
    flown = Flown()
    flown.fly(0.3)
    writer, said = run_writer(flown, tmp_path, incident_keep=2)
    left = sorted(p.name for p in tmp_path.iterdir() if p.name != ".partial")
    assert left == ["episode", "incident-20200103-000000-000", writer.written[0].name]
    assert said[0].startswith("fault: robot error: joint_reflex") and "vipra incident" in said[0]
    assert json.dumps(incident_show.read(writer.written[0]).meta)


def test_a_folder_that_cannot_be_written_is_said_and_nothing_more(tmp_path):
    (tmp_path / "file").write_text("")
    flown = Flown()
    flown.fly(0.3)
    writer, said = run_writer(flown, tmp_path / "file" / "under")
    assert writer.failures == 1 and "could not be written" in said[0] and "make room" in said[0]
    assert [f.code for f in flown.core.machine.faults] == [FaultCode.ROBOT]
    flown.error = ""
    flown.tick()
    assert flown.core.recover(flown.now).success and flown.core.arm(flown.now).success


def test_a_disk_that_fills_up_while_it_is_written_leaves_nothing_behind(tmp_path):
    flown = Flown()
    flown.fly(0.5)
    flown.fail()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))  # the kernel refuses every byte beyond
    try:
        with pytest.raises(OSError):
            write(flown, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []


def test_a_pass_costs_little():
    flown = Flown()
    flown.fly(0.5)
    state, core = flown.arm.state(), flown.core
    begin = time.perf_counter()
    for _ in range(500):
        flown.flight.passed(flown.now, core.machine, core.reference(), state, 0, 1.0, 0.0, 0.0)
    assert (time.perf_counter() - begin) / 500 < 1e-3
