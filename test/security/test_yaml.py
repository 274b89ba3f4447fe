"""Configurations of strangers: every file is built, or refused with a ConfigError."""

import copy

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from vipra_ros.command import settings
from vipra_ros.config import MOST_BYTES, ConfigError, build, load, read_yaml, share
from vipra_ros.control.profile import RobotProfile, load_profile
from vipra_ros.control.settings import ExecutorSettings
from vipra_ros.learning.trials import load_plan, schedule
from vipra_ros.serving.contract import agree

from .conftest import examples, faults, spoil, watched

FILES = {"plan": share("config", "rollouts.yaml"), "robot": share("config", "robots", "fr3.yaml"),
         "server": share("config", "servers", "openpi_droid.yaml")}
LOADERS = {"plan": lambda p: schedule(load_plan(p)), "robot": load_profile, "server": lambda p: agree({}, p)}
VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.dates(), st.binary(max_size=3),
    st.sampled_from((10**400, -1, 0, float("nan"), [], {}, [[]], {1: 2}, [1.0] * 7, "x" * 10_000)))


@examples(20)
@given(data=st.data())
@pytest.mark.parametrize("kind", FILES)
def test_a_spoilt_file(kind, tmp_path, data):
    file = tmp_path / "spoilt.yaml"
    file.write_bytes(spoil(FILES[kind].read_bytes(), data.draw(faults)))
    with watched(ConfigError):
        LOADERS[kind](file)


@examples(20)
@given(data=st.data())
@pytest.mark.parametrize("cls", [RobotProfile, ExecutorSettings])
def test_other_values(cls, data):
    values = copy.deepcopy(read_yaml(FILES["robot"])) if cls is RobotProfile else {}
    names = list(cls.__dataclass_fields__)
    for _ in range(data.draw(st.integers(1, 3))):
        values[data.draw(st.sampled_from((*names, "unknown", 3)))] = data.draw(VALUES)
    with watched(ConfigError):
        build(cls, values, "test")


@examples(40)
@given(content=st.one_of(
    st.binary(max_size=60), st.text("-:?[]{}&*!|>'\"%@`#, \n\tab01.e_", max_size=40).map(str.encode)))
def test_any_bytes(tmp_path, content):
    file = tmp_path / "any.yaml"
    file.write_bytes(content)
    with watched(ConfigError):
        assert isinstance(read_yaml(file), dict)


LAUGHS = "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12))
MERGES = "a0: &a0 {x: 1}\n" + "".join(
    f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}\n" for i in range(1, 12))


@pytest.mark.parametrize("text, said", [
    (LAUGHS, "aliases"), (MERGES, "aliases"), ("a: &a [*a]", "aliases"), ("a: " + "[" * 200_000, "not valid YAML"),
    ("a: " + "{b: " * 50_000, "not valid YAML"), ("a: !!timestamp x", "not valid YAML"),
    ("a: 2001-99-99", "not valid YAML"),
    ("a: !!int x", "not valid YAML"), ("a: " + "1" * 5000, "not valid YAML"), ("? [1, 2]\n: 3", "not valid YAML"),
    ("a: !!python/object/apply:os.system [id]", "not valid YAML"), ("x" * (MOST_BYTES + 1), "more than"),
    ("\x00", "not valid YAML"), ("- 1", "mapping"), ("a: b: c", "not valid YAML"),
])
def test_what_fills_a_memory_or_runs_code(tmp_path, text, said):
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    with watched(ConfigError), pytest.raises(ConfigError, match=said) as caught:
        read_yaml(file)
    assert "\n" not in str(caught.value)


def test_no_text_and_no_file(tmp_path):
    (tmp_path / "latin.yaml").write_bytes(b"a: \xff\xfe")
    for path in (tmp_path / "latin.yaml", tmp_path, tmp_path / "none.yaml"):
        with pytest.raises(ConfigError):
            read_yaml(path)


def test_numbers_may_have_an_exponent_alone(tmp_path):
    file = tmp_path / "numbers.yaml"
    file.write_text("[3e-4, 1.0e5, -2E+3, .5e1, 12e, e5, '3e-4', 0x1e5]".join(("a: ", "\n")))
    assert read_yaml(file)["a"] == [3e-4, 1e5, -2e3, 5.0, "12e", "e5", "3e-4", 0x1E5]
    assert settings(["loop.lr=3e-4", "loop.steps=5"]) == {"loop.lr": 3e-4, "loop.steps": 5}
    with pytest.raises(ConfigError, match="--set a=2001-99-99: not valid YAML"):
        settings(["a=2001-99-99"])


def test_a_value_of_many_digits_or_words_is_shown_in_part(tmp_path):
    for value in (10**400, "x" * 100_000, 1 << 40_000):
        with pytest.raises(ConfigError) as caught:
            build(RobotProfile, {**read_yaml(FILES["robot"]), "flange": value}, "test")
        assert len(str(caught.value)) < 400


def test_the_shipped_files_need_no_aliases():
    for path in share("config").rglob("*.yaml"):
        assert read_yaml(path) == yaml.safe_load(path.read_text())
    assert load(RobotProfile, FILES["robot"]).name == "fr3"
