"""Evaluation on a robot, its pure part: order, blinding, journal, statistics, page."""

import json
import math
import os
import re
from collections import Counter

import pytest

from vipra_ros.config import ConfigError, build
from vipra_ros.learning import trial_page, trial_statistics
from vipra_ros.learning.trial_journal import Journal, Trial, interruptions
from vipra_ros.learning.trials import FIRST_SEED, Blind, Plan, brief, load_plan, schedule

SECRETS = ("alpha", "beta", "gamma", "10.1.2.3", "/data/alpha-98", "alpha-98", "ws://")


def make_plan(**changes):
    values = {
        "policies": [{"name": "alpha", "checkpoint": "/data/alpha-98"}, {"name": "beta", "server": "ws://10.1.2.3:80"},
                     {"name": "gamma", "checkpoint": "models/gamma"}],
        "tasks": [{"label": "push", "instruction": "push it", "layout": "cube on cross {block}"},
                  {"label": "lift", "instruction": "lift it"}],
        "trials": 6, "seed": 3, "robot": "172.16.0.2", **changes,
    }
    return build(Plan, values)


def trial(slot, label, code="A", task="push", block=0, seconds=5.0, **more):
    return Trial(slot, code, task, block, 1, label, seconds=seconds, **more)


# --- the plan ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes, said", [
    ({"policies": []}, "policies: none is given"),
    ({"policies": [{"name": "a"}]}, "policy 'a': give one of checkpoint and server"),
    ({"policies": [{"name": "a", "checkpoint": "x", "server": "ws://y"}]}, "one of checkpoint and server"),
    ({"policies": [{"name": "a", "checkpoint": "x"}] * 2}, "the name 'a' must be given, and given once"),
    ({"policies": [{"name": f"p{i}", "checkpoint": "x"} for i in range(27)]}, "letters for 26"),
    ({"tasks": [{"label": "t"}]}, "instruction is missing"),
    ({"robot": "sim"}, "sim is missing"),
    ({"tasks": [{"label": "t", "sim": "fold"}]}, "choose one of"),
    ({"trials": 0}, "at least 1"),
    ({"trails": 5}, "unknown key 'trails'"),
])
def test_a_wrong_plan_says_what_and_how(changes, said):
    with pytest.raises(ConfigError, match=re.escape(said)):
        make_plan(**changes)


def test_a_plan_from_yaml(tmp_path):
    file = tmp_path / "plan.yaml"
    file.write_text("policies: [{name: a, checkpoint: models/tiny, arguments: {rate: 2}}]\n"
                    "tasks: [{label: reach, sim: reach, seconds: 5}]\ntrials: 2\n")
    plan = load_plan(file)
    assert plan.simulated and plan.limit(plan.tasks[0]) == 5.0
    assert plan.policies[0].launch() == {"checkpoint": "models/tiny", "rate": "2"}
    assert make_plan().policies[1].launch() == {"engine": "remote", "server": "ws://10.1.2.3:80"}


def test_booleans_of_yaml_are_launch_arguments():
    plan = make_plan(policies=[{"name": "a", "checkpoint": "models/tiny", "arguments": {"console": False}}],
                     arguments={"dry_run": True, "rate": 2})
    assert plan.launch(0) == {"dry_run": "true", "rate": "2", "robot": "172.16.0.2", "checkpoint": "models/tiny",
                              "console": "false"}
    plan.check()


# --- the order -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["scene", "policy"])
@pytest.mark.parametrize("seed", range(5))
def test_every_block_is_complete_and_matched(order, seed):
    plan = make_plan(order=order, seed=seed)
    slots = schedule(plan)
    assert [s.number for s in slots] == list(range(3 * 2 * 6))
    for block in range(6):
        own = slots[6 * block : 6 * block + 6]
        assert {s.block for s in own} == {block}
        assert Counter((s.policy, s.task) for s in own) == Counter((p, t) for p in range(3) for t in range(2))
        for task in range(2):
            assert len({s.seed for s in own if s.task == task}) == 1, "matched trials see the same scene"
    scenes = {(s.task, s.block): s.seed for s in slots}
    assert len(set(scenes.values())) == 12 and min(scenes.values()) >= FIRST_SEED


@pytest.mark.parametrize("seed", range(5))
def test_each_policy_takes_each_place_once_in_a_round(seed):
    slots = schedule(make_plan(seed=seed))
    for task in range(2):
        for round_ in range(2):
            places = Counter()
            for block in range(3 * round_, 3 * round_ + 3):
                turn = [s.policy for s in slots if s.block == block and s.task == task]
                places.update(enumerate(turn))
            assert places == Counter({(place, p): 1 for place in range(3) for p in range(3)})
    turns = [s.policy for s in schedule(make_plan(seed=seed, order="policy"))]
    for round_ in range(2):
        firsts = [turns[6 * b :: 2][:3] for b in range(3 * round_, 3 * round_ + 3)]
        assert all(sorted(column) == [0, 1, 2] for column in zip(*firsts))


def test_in_scene_order_a_layout_stays_for_all_policies():
    slots = schedule(make_plan())
    for i in range(0, len(slots), 3):
        assert len({(s.task, s.block) for s in slots[i : i + 3]}) == 1


def test_in_policy_order_a_policy_stays_for_all_tasks():
    slots = schedule(make_plan(order="policy"))
    for i in range(0, len(slots), 2):
        assert len({s.policy for s in slots[i : i + 2]}) == 1


def test_the_order_is_the_plans_and_another_seed_is_another_order():
    assert schedule(make_plan()) == schedule(make_plan())
    orders = {tuple((s.policy, s.task) for s in schedule(make_plan(seed=k))) for k in range(20)}
    assert len(orders) == 20
    short = schedule(make_plan(trials=4))
    assert len(short) == 24, "a round that is cut short is still whole blocks"


def test_a_policy_is_first_as_often_as_the_others():
    """30 blocks of 3 policies: ten times each, exactly."""
    slots = schedule(make_plan(trials=30))
    firsts = Counter(next(s.policy for s in slots if s.block == b and s.task == 0) for b in range(30))
    assert firsts == Counter({0: 10, 1: 10, 2: 10})


# --- blinding ------------------------------------------------------------------------------------------------


def test_letters_do_not_follow_the_plan():
    given = Counter(Blind(make_plan(seed=k)).codes for k in range(200))
    assert all(sorted(codes) == ["A", "B", "C"] for codes in given) and len(given) == 6
    assert max(given.values()) < 60, "each of six about 33 times"
    given = {Blind(make_plan(trials=k)).codes for k in range(1, 40)}
    assert len(given) == 6, "who knows the seed alone knows nothing"


def test_what_the_operator_reads_names_no_policy():
    plan = make_plan()
    blind, slots = Blind(plan), schedule(plan)
    for slot in slots:
        text = "\n".join(brief(plan, blind, slot, len(slots)))
        assert not any(s in text for s in SECRETS)
        assert f"policy {blind.codes[slot.policy]}," in text and plan.tasks[slot.task].instruction in text
    assert "cube on cross 1" in "\n".join(brief(plan, blind, next(s for s in slots if s.task == 0), 36))


def test_errors_of_nodes_give_nothing_away():
    blind = Blind(make_plan())
    for text in ("policy-3 ended: /data/alpha-98: no such folder", "ConfigError: ALPHA is not ready",
                 "no answer of ws://10.1.2.3:80 (beta)", f"{os.path.abspath('models/gamma')}/config.json is missing",
                 "connection to 10.1.2.3:80 refused", "alpha-98/vq.safetensors"):
        clean = blind.scrub(text)
        assert not any(s in clean.lower() for s in SECRETS), clean
        assert re.search("policy [ABC]", clean)
    assert blind.scrub("the alphabet is gammas") == "the alphabet is gammas"


def test_what_every_policy_has_is_no_secret():
    """The folder that every training ends in, and YAML's booleans, name nobody."""
    blind = Blind(make_plan(policies=[{"name": "one", "checkpoint": "/data/run/checkpoint"},
                                      {"name": "two", "checkpoint": "b", "arguments": {"dry_run": True}}]))
    assert blind.scrub("the checkpoint says true") == "the checkpoint says true"
    assert re.fullmatch("policy [AB] is cut", blind.scrub("/data/run/checkpoint is cut"))


def test_one_checkpoint_under_two_names_stays_blind():
    blind = Blind(make_plan(policies=[{"name": "one", "checkpoint": "models/tiny"},
                                      {"name": "two", "checkpoint": "models/tiny"}]))
    assert blind.scrub("models/tiny is cut") == "policy is cut"


# --- the journal ---------------------------------------------------------------------------------------------


def test_an_interrupted_evaluation_goes_on_where_it_stopped(tmp_path):
    plan = make_plan()
    slots = schedule(plan)
    journal = Journal(tmp_path, plan)
    assert journal.remaining(slots) == list(slots)
    journal.add(trial(0, "success"))
    journal.add(trial(1, "invalid"))
    again = Journal(tmp_path, plan)
    assert again.trials == journal.trials
    assert [s.number for s in again.remaining(slots)][:2] == [1, 2], "an invalid trial is done again"
    again.add(trial(1, "failure"))
    assert [t.slot for t in again.counted()] == [0, 1] and len(Journal(tmp_path, plan).trials) == 3
    assert again.take_back().slot == 1 and again.take_back() is None
    assert [s.number for s in Journal(tmp_path, plan).remaining(slots)][0] == 1


def test_trials_of_two_plans_are_never_mixed(tmp_path):
    Journal(tmp_path, make_plan()).add(trial(0, "success"))
    with pytest.raises(ConfigError, match="another folder, or the plan as it was"):
        Journal(tmp_path, make_plan(seed=4))
    (tmp_path / "results.jsonl").write_text("{}\n")
    with pytest.raises(ConfigError, match="cannot be read"):
        Journal(tmp_path, make_plan())


def test_letters_of_a_journal_stay_those_it_was_begun_with(tmp_path):
    """Before, the letters followed from the seed alone; the head of a journal says when they do not."""
    plan = next(p for k in range(20) if Blind(p := make_plan(seed=k), by_seed=True).codes != Blind(p).codes)
    (tmp_path / "results.jsonl").write_text(json.dumps({"plan": plan.fingerprint}) + "\n")
    for _ in range(2):
        journal = Journal(tmp_path, plan)
        assert journal.blind.codes == Blind(plan, by_seed=True).codes
        journal.add(trial(0, "success"))
    assert Journal(tmp_path / "new", plan).blind.codes == Blind(plan).codes
    names = trial_page.summary(plan, journal, unblind=True)["names"]
    assert names[journal.blind.codes[0]] == "alpha"


def test_a_model_that_changed_half_way_is_refused(tmp_path):
    journal = Journal(tmp_path, make_plan())
    kept = journal.model("A", "10.1.2.3:80")
    assert len(kept) == 16 and kept != Journal(tmp_path, make_plan(seed=4)).model("A", "10.1.2.3:80")
    journal.add(trial(0, "success", model=kept))
    again = Journal(tmp_path, make_plan())
    assert again.model("A", "10.1.2.3:80") == kept and again.model("B", "other")
    with pytest.raises(ConfigError, match="policy A has another checkpoint than in its trials so far"):
        again.model("A", "other")
    again.take_back()
    assert again.model("A", "other"), "no valid trial is left that it could be mixed with"


def test_words_of_any_letters_come_back(tmp_path):
    words = "lift it\u2028now\x85"
    Journal(tmp_path, make_plan()).add(trial(0, "success", words=words))
    assert Journal(tmp_path, make_plan()).trials[0].words == words


def test_a_power_cut_while_writing_costs_nothing(tmp_path, monkeypatch):
    plan = make_plan()
    journal = Journal(tmp_path, plan)
    journal.add(trial(0, "success"))
    monkeypatch.setattr(os, "replace", lambda *a: (_ for _ in ()).throw(OSError("no power")))
    with pytest.raises(OSError):
        journal.add(trial(1, "success"))
    assert [t.slot for t in Journal(tmp_path, plan).trials] == [0]


def test_a_wrong_label_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="choose one of success, failure, invalid"):
        Journal(tmp_path, make_plan()).add(trial(0, "maybe"))


def test_the_journal_names_no_policy(tmp_path):
    Journal(tmp_path, make_plan()).add(trial(0, "success"))
    text = (tmp_path / "results.jsonl").read_text()
    assert not any(s in text for s in SECRETS)
    assert [json.loads(line) for line in text.splitlines()][1]["code"] == "A"


@pytest.mark.parametrize("states, expected", [
    ("ARMED RUNNING RUNNING STOPPING IDLE", (0, 0)),
    ("ARMED RUNNING STOPPING ARMED RUNNING ARMED", (2, 0)),
    ("RUNNING STOPPING HOLD", (0, 1)),
    ("ARMED ARMED HOLD FAULT", (0, 1)),
    ("RUNNING FAULT", (0, 1)),
    ("", (0, 0)),
])
def test_stalls_and_stops_are_counted(states, expected):
    assert interruptions(states.split()) == expected


# --- statistics ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first, second, p", [
    (0, 0, 1.0),
    (1, 0, 1.0),  # 2 / 2
    (5, 0, 0.0625),  # 2 / 32
    (6, 0, 0.03125),  # 2 / 64
    (8, 2, 0.109375),  # 2 (1 + 10 + 45) / 1024
    (2, 8, 0.109375),
    (9, 1, 22 / 1024),  # 2 (1 + 10) / 1024
    (3, 3, 1.0),  # 2 (1 + 6 + 15 + 20) / 64 > 1
    (1, 4, 0.375),  # 2 (1 + 5) / 32
])
def test_the_exact_test_against_values_by_hand(first, second, p):
    pairs = [(True, False)] * first + [(False, True)] * second + [(True, True)] * 7 + [(False, False)] * 5
    assert trial_statistics.mcnemar(pairs) == (first, second, pytest.approx(p, abs=1e-15))


def test_thousands_of_pairs_have_a_p_too():
    assert trial_statistics.sign_test(1024, 1024) == 1.0
    assert trial_statistics.sign_test(600, 700) == pytest.approx(0.00601, rel=0.05)


def test_holm_by_hand():
    # sorted .01 .03 .04 times 3 2 1 = .03 .06 .04, never falling: .03 .06 .06
    assert trial_statistics.holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert trial_statistics.holm([0.9, 0.8]) == [1.0, 1.0] and trial_statistics.holm([]) == []


def two_policies(**changes):
    return make_plan(policies=[{"name": "alpha", "checkpoint": "a"}, {"name": "beta", "checkpoint": "b"}], **changes)


def filled(tmp_path, plan, won):
    """A journal in which `won(policy, task, block)` decides; policy 0 takes 4 s, the other 6 s."""
    blind, journal = Blind(plan), Journal(tmp_path, plan)
    for s in schedule(plan):
        label = "success" if won(s.policy, s.task, s.block) else "failure"
        journal.add(Trial(s.number, blind.codes[s.policy], plan.tasks[s.task].label, s.block, s.seed, label,
                          seconds=4.0 + 2 * s.policy, stalls=s.policy, stops=1 - s.policy))
    return journal


def test_figures_of_a_known_evaluation(tmp_path):
    """alpha wins all of push but block 0; beta wins push in block 0 only, and both win all of lift."""
    plan = two_policies()
    journal = filled(tmp_path, plan, lambda p, t, b: t == 1 or (b > 0) != bool(p))
    codes, tasks = dict(zip(["alpha", "beta"], Blind(plan).codes)), ["push", "lift"]
    cells = {(c.code, c.task): c for c in trial_statistics.cells(journal.counted(), Blind(plan).codes, tasks)}
    alpha = cells[codes["alpha"], "push"]
    assert (alpha.successes, alpha.n, alpha.seconds, alpha.stalls, alpha.stops) == (5, 6, 4.0, 0, 6)
    # Wilson: z = 1.96, (5/6 + z2/12 +- z sqrt(5/216 + z2/144)) / (1 + z2/6)
    z2 = 1.959963984540054**2
    half = math.sqrt(z2 * (5 / 216 + z2 / 144))
    assert alpha.low == pytest.approx((5 / 6 + z2 / 12 - half) / (1 + z2 / 6))
    assert alpha.high == pytest.approx((5 / 6 + z2 / 12 + half) / (1 + z2 / 6))
    assert cells[codes["beta"], ""].successes == 7 and cells[codes["beta"], ""].n == 12
    rows = {c.task: c for c in trial_statistics.comparisons(journal.counted(), Blind(plan).codes, tasks)}
    assert (rows["push"].first_only, rows["push"].second_only, rows["push"].pairs) == (5, 1, 6)
    assert rows["push"].p == pytest.approx(14 / 64) and rows[""].p == rows[""].p_holm == pytest.approx(14 / 64)
    assert (rows["lift"].faster, rows["lift"].slower) == (6, 0) and rows["lift"].p_time == pytest.approx(2 / 64)


def test_only_trials_of_both_are_compared():
    trials = [trial(0, "success", "A", block=0), trial(1, "failure", "B", block=0), trial(2, "success", "A", block=1)]
    (row,) = trial_statistics.comparisons(trials, ["A", "B"], ["push"])
    assert (row.pairs, row.first_only, row.second_only, row.p) == (1, 1, 0, 1.0)


# --- the report ----------------------------------------------------------------------------------------------


def test_the_report_names_policies_only_when_all_is_done(tmp_path):
    plan = two_policies(trials=2)
    journal = filled(tmp_path, plan, lambda p, t, b: p == 0)
    page = trial_page.write(plan, journal, tmp_path).read_text()
    figures = json.loads((tmp_path / "report.json").read_text())
    assert figures["missing"] == 0 and "alpha" in page and "4 of 4" in page and "0 of 4" in page
    assert figures["comparisons"][-1]["p"] == pytest.approx(0.125) and "0.125" in page
    assert trial_page.lines(figures)[2].startswith("alpha") and "4/4" in trial_page.lines(figures)[2]
    journal.take_back()
    blinded = trial_page.write(plan, journal, tmp_path)
    for text in (blinded.read_text(), (tmp_path / "report.json").read_text()):
        assert "alpha" not in text and "beta" not in text and "policy A" in text
    assert "7 of 8 trials, 1 invalid" in blinded.read_text()
    assert "alpha" in trial_page.write(plan, journal, tmp_path, unblind=True).read_text()


def test_the_order_of_a_blinded_report_tells_nothing(tmp_path):
    """The first of the letters is A, in whatever order the plan has the policies."""
    for seed in range(8):
        plan = make_plan(seed=seed)
        assert list(trial_page.summary(plan, Journal(tmp_path / str(seed), plan))["names"]) == ["A", "B", "C"]


def test_a_corrected_p_stands_beside_the_others(tmp_path):
    three, two = (trial_page.lines(trial_page.summary(p, filled(tmp_path / p.fingerprint, p, lambda p, t, b: p == 0)))
                  for p in (make_plan(), two_policies()))
    assert all("after Holm" in line for line in three if "p = " in line) and "p = " in three[-1]
    assert "p = " in two[-1] and not any("Holm" in line for line in two)


def test_the_page_is_safe_html_and_has_the_videos(tmp_path):
    plan = make_plan(policies=[{"name": "<b>x</b>", "checkpoint": "a"}], trials=1)
    journal = filled(tmp_path, plan, lambda p, t, b: False)
    journal.trials[0].video, journal.trials[0].stopped = "videos/trial-001-1.mp4", "robot <error>"
    journal.trials[0].words, journal.trials[0].began = "lift <it>", "2026-01-02T03:04:05+00:00"
    page = trial_page.render(plan, trial_page.summary(plan, journal))
    assert "<b>x</b>" not in page and "&lt;b&gt;x" in page and "robot &lt;error&gt;" in page
    assert "lift &lt;it&gt;" in page and "2026-01-02 03:04" in page and plan.fingerprint in page
    assert f'<td class="n">{journal.trials[0].seed}</td>' in page
    assert 'src="videos/trial-001-1.mp4#t=0.1"' in page and page.count("<video") == 1 and "Pairs" not in page


def test_an_empty_evaluation_has_a_report(tmp_path):
    plan = make_plan()
    page = trial_page.write(plan, Journal(tmp_path, plan), tmp_path).read_text()
    assert "0 of 36 trials" in page and "0 - 100 %" in page
