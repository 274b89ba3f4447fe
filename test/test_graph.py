"""Which nodes make a system, with which parameters."""

import runpy
import sys
from pathlib import Path
from unittest.mock import MagicMock

import pytest

from vipra_ros import graph
from vipra_ros.config import ConfigError

REPOSITORY = Path(graph.__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def every_node_exists(monkeypatch, tmp_path):
    """The graph of every system, whether this version has all its nodes or not."""
    nodes = tmp_path / "nodes"
    nodes.mkdir()
    for name in ("sim", "executor", "policy", "gello", "demonstrator", "recorder", "replay", "console"):
        (nodes / f"{name}.py").touch()
    monkeypatch.setattr(graph, "__file__", str(tmp_path / "graph.py"))


def by_name(system, **given):
    return {p.executable: p for p in graph.processes(system, given)}


def test_simulation_starts_the_sim_and_gives_its_address_to_the_executor():
    found = by_name("policy", sim_host="127.0.0.9", task="lift", seed="5")
    assert list(found) == ["sim", "executor", "policy"]
    assert found["sim"].parameters == {"host": "127.0.0.9", "task": "lift", "seed": 5, "use_sim_time": False,
                                       "publish_clock": False}
    executor = found["executor"].parameters
    assert executor["host"] == "127.0.0.9" and executor["realtime_config"] == "ignore"
    assert executor["arm_on_start"] is True


def test_what_computes_where_and_in_how_many_steps_is_the_policys():
    given = {"engine": "static", "device": "cuda:1", "euler_steps": "5", "weights": "fp8_dynamic"}
    parameters = by_name("policy", **given)["policy"].parameters
    assert {k: parameters[k] for k in given} == {**given, "euler_steps": 5}
    with pytest.raises(ConfigError, match="device = 'gpu': write auto, cpu"):
        by_name("policy", device="gpu")


def test_the_console_comes_when_asked_for_and_the_dead_man_is_the_executors():
    assert "console" not in by_name("policy")
    found = by_name("policy", console="true", deadman_timeout="0.3", profile="panda")
    assert found["console"].parameters == {"profile": "panda", "use_sim_time": False}
    assert found["executor"].parameters["deadman_timeout"] == 0.3 and not found["console"].required


def test_hardware_starts_no_sim_and_arms_nothing_by_itself():
    found = by_name("policy", robot="172.16.0.2", checkpoint="models/tiny")
    assert list(found) == ["executor", "policy"]
    executor = found["executor"].parameters
    assert executor["host"] == "172.16.0.2" and executor["arm_on_start"] is False
    assert "realtime_config" not in executor  # the executor's own default: enforce


def test_only_executor_and_sim_end_the_system():
    for system in graph.SYSTEMS:
        for p in graph.processes(system, {"bag": "x"} if system == "replay" else {}):
            assert p.required == (p.executable in ("executor", "sim"))


def test_what_is_not_there_is_refused_before_anything_starts():
    for system, given in (("teleop", {"gello_config": "none.yaml"}), ("policy", {"checkpoint": "out/none"}),
                          ("policy", {"params_file": "none.yaml"})):
        with pytest.raises(ConfigError, match="none"):
            graph.processes(system, given)


def test_nodes_are_found_by_those_that_are_started_without_our_variables(monkeypatch):
    for name in ("ROS_AUTOMATIC_DISCOVERY_RANGE", *graph.PROFILE_VARIABLES):
        monkeypatch.delenv(name, raising=False)
    simulated, real = by_name("policy"), by_name("policy", robot="172.16.0.2", dry_run="true")
    assert not any("FASTDDS_BUILTIN_TRANSPORTS" in p.environment for p in [*simulated.values(), *real.values()])
    assert Path(simulated["sim"].environment[graph.PROFILE_VARIABLES[0]]).exists()
    # A simulated system keeps to this computer, a real one may have its policy elsewhere.
    assert {p.environment["ROS_AUTOMATIC_DISCOVERY_RANGE"] for p in simulated.values()} == {"LOCALHOST"}
    assert not any("ROS_AUTOMATIC_DISCOVERY_RANGE" in p.environment for p in real.values())
    monkeypatch.setenv("ROS_AUTOMATIC_DISCOVERY_RANGE", "SUBNET")  # the user's word stands
    assert not any("ROS_AUTOMATIC_DISCOVERY_RANGE" in p.environment for p in by_name("policy").values())


def test_systems(tmp_path):
    assert list(by_name("sim")) == ["sim", "executor"]
    assert list(by_name("teleop")) == ["sim", "executor", "gello"]
    assert by_name("teleop", record="out/bags")["recorder"].parameters["record"] == "out/bags"
    policy = by_name("policy", record="out/bags")
    assert list(policy) == ["sim", "executor", "policy", "recorder"]
    assert policy["recorder"].parameters == {"record": "out/bags", "use_sim_time": False}
    assert by_name("teleop", gello="emulated")["gello"].parameters["emulate"] == "sine"
    mine = tmp_path / "my.yaml"
    mine.touch()
    assert "emulate" not in by_name("teleop", gello_config=str(mine))["gello"].parameters
    replay = by_name("replay", bag="b")["replay"]
    assert replay.parameters["bag"] == "b" and replay.finishes, "with the last row all end, with the replay's status"


def test_the_expert_has_the_port_that_gello_opens_and_ends_the_system():
    found = by_name("teleop", gello="emulated", expert="push", seed="7", episodes="3", sim_host="127.0.0.9")
    assert list(found) == ["sim", "executor", "gello", "recorder", "demonstrator"]
    demonstrator, gello = found["demonstrator"], found["gello"].parameters
    assert demonstrator.finishes and demonstrator.parameters["episodes"] == 3
    assert gello["com_port"] == demonstrator.parameters["com_port"] and "127.0.0.9" in gello["com_port"]
    assert "emulate" not in gello and found["recorder"].parameters["record"] == "out/teleop"
    assert found["sim"].parameters["task"] == "push" and found["sim"].parameters["seed"] == 7
    assert not any(p.finishes for name, p in found.items() if name != "demonstrator")


def test_two_arms_by_namespace_share_nothing():
    left = by_name("teleop", gello="emulated", expert="push", namespace="left", sim_host="127.0.0.11", record="l")
    right = by_name("teleop", gello="emulated", expert="push", namespace="right", sim_host="127.0.0.12", record="r")
    for name, process in left.items():
        assert process.namespace == "left" and right[name].namespace == "right"
        for key in {"host", "com_port", "record"} & set(process.parameters):
            assert process.parameters[key] != right[name].parameters[key]


def test_what_is_not_given_is_left_to_the_node():
    assert by_name("policy")["policy"].parameters == {"use_sim_time": False, "simulated": True}
    assert by_name("policy", robot="172.16.0.2", dry_run="true")["policy"].parameters == {"use_sim_time": False}
    policy = by_name("policy", checkpoint="tiny", instruction="lift the red cube", rate="2")["policy"].parameters
    assert policy == {"checkpoint": "tiny", "instruction": "lift the red cube", "rate": 2.0,
                      "use_sim_time": False, "simulated": True}
    assert isinstance(policy["rate"], float)


def test_a_discrete_policy_goes_to_no_real_arm(tmp_path):
    (tmp_path / "config.json").write_text('{"variant": "ViPRA-AR", "policy": {"decoder": "discrete"}}')
    assert by_name("policy", checkpoint=str(tmp_path))["policy"].parameters["simulated"] is True
    with pytest.raises(ConfigError, match="ViPRA-AR has a discrete decoder: .*safety stop"):
        by_name("policy", checkpoint=str(tmp_path), robot="172.16.0.2")
    (tmp_path / "config.json").write_text('{"variant": "ViPRA-FM", "policy": {}}')
    assert "simulated" not in by_name("policy", checkpoint=str(tmp_path), robot="172.16.0.2")["policy"].parameters


def test_chunks_of_one_row_are_played_when_they_arrive(tmp_path):
    (tmp_path / "config.json").write_text('{"execute_steps": 1, "policy": {}}')
    found = by_name("policy", checkpoint=str(tmp_path))
    assert found["policy"].parameters["mode"] == found["executor"].parameters["mode"] == "sync"
    assert by_name("policy", checkpoint=str(tmp_path), mode="async")["executor"].parameters["mode"] == "async"
    assert "mode" not in by_name("policy", checkpoint="models/tiny")["policy"].parameters


def test_ros_arguments(tmp_path):
    params = tmp_path / "my.yaml"
    params.write_text("{}")
    p = by_name("policy", namespace="left", params_file=str(params), log_level="debug", dry_run="true",
                instruction='say "2" \\ 3', use_sim_time="true")
    assert p["sim"].parameters["publish_clock"] is True
    words = p["executor"].ros_arguments()
    assert words[:6] == ["--log-level", "debug", "-r", "__ns:=/left", "--params-file", str(params)]
    assert "dry_run:=true" in words and 'host:="127.0.0.8"' in words and "use_sim_time:=true" in words
    # a text stays a text, whatever it looks like
    assert 'instruction:="say \\"2\\" \\\\ 3"' in p["policy"].ros_arguments()


def test_a_parameter_file_wins_over_our_defaults_and_not_over_what_is_given(tmp_path):
    params = tmp_path / "my.yaml"
    params.write_text("executor: {ros__parameters: {sink: impedance}}\n/**: {ros__parameters: {use_sim_time: true}}")
    found = by_name("teleop", params_file=str(params))
    assert not {"sink", "use_sim_time"} & set(found["executor"].parameters)
    assert by_name("teleop", params_file=str(params), sink="waypoints")["executor"].parameters["sink"] == "waypoints"
    assert by_name("teleop")["executor"].parameters["sink"] == "velocity"


@pytest.mark.parametrize("system, given, said", [
    ("policy", {"robto": "sim"}, "unknown argument 'robto'; known: robot"),
    ("sim", {"robot": "172.16.0.2"}, "unknown argument 'robot'"),
    ("policy", {"rate": "fast"}, "rate:=fast: expected a number"),
    ("policy", {"dry_run": "yes"}, "choose one of true, false"),
    ("policy", {"mode": "turbo"}, "choose one of sync, async"),
    ("policy", {"robot": "172.16.0.2", "task": "lift"}, "task:=lift is for robot:=sim only"),
    ("policy", {"params_file": "/nowhere.yaml"}, "no such file"),
    ("policy", {"params_file": "~/site.yaml"}, r"no such file; no shell turns ~ .* write \$HOME"),
    ("policy", {"checkpoint": "~/policy"}, r"a name under models/; no shell turns ~ .* write \$HOME"),
    ("replay", {}, "add bag:=FOLDER"),
    ("teleop", {"expert": "push"}, "needs robot:=sim and gello:=emulated"),
    ("teleop", {"expert": "push", "gello": "emulated", "robot": "172.16.0.2"}, "needs robot:=sim"),
    ("teleop", {"expert": "push", "gello": "emulated", "task": "lift"}, "leave task out"),
    ("teleop", {"gello": "emulated", "robot": "172.16.0.2"}, "gello:=emulated swings the arm by itself"),
    ("policy", {"robot": "172.16.0.2"}, "models/tiny knows the simulated table only; add checkpoint:=FOLDER"),
    ("policy", {"robot": "172.16.0.2", "dry_run": "false"}, "models/tiny knows the simulated table only"),
    ("teleop", {"expert": "push", "gello": "emulated", "com_port": "/dev/x"}, "brings a port of its own"),
    ("teleop", {"episodes": "2"}, "add expert:=push"),
    ("fly", {}, "known systems: policy, teleop, sim, replay"),
])
def test_errors_name_the_value_and_the_remedy(system, given, said):
    with pytest.raises(ConfigError, match=said) as error:
        graph.processes(system, given)
    assert "\n" not in str(error.value)


def test_a_node_this_version_lacks_is_said_at_once(tmp_path):
    (tmp_path / "nodes" / "gello.py").unlink()
    with pytest.raises(ConfigError, match="no node 'gello' yet"):
        graph.processes("teleop", {})


def test_the_arguments_a_user_expects_are_there_and_described():
    names = {a.name for a in graph.arguments("policy")}
    assert names >= {"robot", "checkpoint", "instruction", "rate", "dry_run", "namespace", "use_sim_time",
                     "params_file", "log_level"}
    assert all(len(line) <= 80 for system in graph.SYSTEMS for line in graph.describe(system).splitlines())
    text = graph.describe("policy")
    for a in graph.arguments("policy"):
        assert a.doc and f"'{a.name}'" in text
    assert graph.parse(["a:=b:=c", "d:="]) == {"a": "b:=c", "d": ""}


def test_every_system_has_its_launch_file():
    for system in graph.SYSTEMS:
        assert f'("{system}")' in (REPOSITORY / "launch" / f"{system}.launch.py").read_text()


def test_a_parameter_file_wins_over_what_nobody_typed(tmp_path):
    file = tmp_path / "site.yaml"
    file.write_text("/**/executor: {ros__parameters: {arm_on_start: false, realtime_config: enforce}}\n"
                    "/**: {ros__parameters: {use_sim_time: true}}\n")
    found = by_name("sim", params_file=str(file))
    assert not {"arm_on_start", "realtime_config"} & set(found["executor"].parameters)
    assert found["sim"].parameters["publish_clock"] is True  # else all would wait for a clock that nobody publishes
    found = by_name("sim", params_file=str(file), arm_on_start="true", realtime_config="ignore")
    assert found["executor"].parameters["arm_on_start"] is True
    assert found["executor"].parameters["realtime_config"] == "ignore"
    file.write_text("sim: {ros__parameters: {publish_clock: true}}")
    assert "publish_clock" not in by_name("sim", params_file=str(file))["sim"].parameters


@pytest.mark.parametrize("text", ("/**/policy:\n  ros__parameters: {checkpoint: models/tiny}\n",
                                  "/**/policy:\n  ros__parameters: {engine: remote, server: 'ws://127.0.0.1:8000'}\n",
                                  "/**/executor:\n  ros__parameters: {dry_run: true}\n"))
def test_a_file_may_say_which_policy_moves_a_real_arm_or_that_none_does(tmp_path, text):
    (tmp_path / "site.yaml").write_text(text)
    given = {"robot": "172.16.0.2", "params_file": str(tmp_path / "site.yaml")}
    assert "policy" in by_name("policy", **given)
    if "dry_run" in text:
        with pytest.raises(ConfigError, match="models/tiny knows the simulated table only"):
            by_name("policy", dry_run="false", **given)


def test_what_is_typed_wins_though_it_is_the_default(tmp_path):
    (tmp_path / "site.yaml").write_text("/**/executor: {ros__parameters: {sink: impedance}}\n"
                                        "/**: {ros__parameters: {use_sim_time: true}}\n")
    file = str(tmp_path / "site.yaml")
    found = by_name("teleop", params_file=file)["executor"].parameters
    assert not {"sink", "use_sim_time"} & set(found)
    found = by_name("teleop", params_file=file, sink="velocity", use_sim_time="false")["executor"].parameters
    assert found["sink"] == "velocity" and found["use_sim_time"] is False


def test_sections_for_another_namespace_change_nothing(tmp_path):
    (tmp_path / "both.yaml").write_text("/left/executor: {ros__parameters: {arm_on_start: false, "
                                        "realtime_config: enforce, mode: async}}\n")
    right, left = (by_name("sim", namespace=name, params_file=str(tmp_path / "both.yaml"))["executor"].parameters
                   for name in ("right", "left"))
    assert right["arm_on_start"] is True and right["realtime_config"] == "ignore"
    assert not {"arm_on_start", "realtime_config"} & set(left)


def test_no_file_arms_an_arm_of_metal(tmp_path):
    """`vipra config dump sim` says `arm_on_start: true`, and may be taken for a robot."""
    (tmp_path / "sim.yaml").write_text("/executor: {ros__parameters: {arm_on_start: true}}\n")
    given = {"robot": "172.16.0.2", "checkpoint": "models/tiny", "params_file": str(tmp_path / "sim.yaml")}
    assert by_name("policy", **given)["executor"].parameters["arm_on_start"] is False
    assert by_name("policy", arm_on_start="true", **given)["executor"].parameters["arm_on_start"] is True


@pytest.mark.parametrize(("system", "text"), (("teleop", "/gello: {ros__parameters: {emulate: sine}}"),
                                              ("policy", "/policy: {ros__parameters: {simulated: true}}")))
def test_what_a_file_says_of_a_simulated_arm_moves_none_of_metal(tmp_path, system, text):
    """`vipra config dump teleop gello:=emulated` says `emulate: sine`."""
    (tmp_path / "sim.yaml").write_text(text)
    given = {"params_file": str(tmp_path / "sim.yaml")} | ({"checkpoint": "models/tiny"} if system == "policy" else {})
    with pytest.raises(ConfigError, match="sim.yaml is for robot:=sim.*; take it out, or add dry_run:=true"):
        by_name(system, robot="172.16.0.2", **given)
    assert by_name(system, robot="172.16.0.2", dry_run="true", **given) and by_name(system, **given)


def test_a_discrete_policy_that_a_file_names_goes_to_no_real_arm(tmp_path):
    (tmp_path / "config.json").write_text('{"variant": "ViPRA-AR", "policy": {"decoder": "discrete"}}')
    (tmp_path / "site.yaml").write_text(f"/policy: {{ros__parameters: {{checkpoint: {tmp_path}}}}}")
    with pytest.raises(ConfigError, match="ViPRA-AR has a discrete decoder"):
        by_name("policy", robot="172.16.0.2", params_file=str(tmp_path / "site.yaml"))


@pytest.mark.parametrize("words", (["vipra_ros", "policy.launch.py"], ["vipra_ros", "--debug", "policy.launch.py"],
                                   [str(REPOSITORY / "launch/policy.launch.py")], ["own", "policy.launch.py"]))
def test_the_launch_files_drop_no_argument_that_nobody_declared(monkeypatch, words):
    for name in ("launch", "launch.actions", "launch.events", "launch.events.process", "launch_ros",
                 "launch_ros.actions"):
        monkeypatch.setitem(sys.modules, name, MagicMock())
    monkeypatch.setattr(sys, "argv", ["ros2", "launch", *words, "dryrun:=true"])
    context = MagicMock(argv=["dryrun:=true"],
                        launch_configurations={a.name: a.default for a in graph.arguments("policy")})
    given = runpy.run_path(str(REPOSITORY / "launch/system.py"))["_given"](context, "policy")
    assert given == ({} if "own" in words else {"dryrun": "true"})
