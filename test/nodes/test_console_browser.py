"""The operator's page, clicked in a real browser (skipped without a chromium): an episode, hold-to-run, a trial.

VIPRA_CHROMIUM names one that is not on the path; SCREENSHOTS is a folder for pictures of the page, as in the docs.
"""

import os
import shutil
import socket
from pathlib import Path

import pytest

pytest.importorskip("rclpy")
pytest.importorskip("nicegui", reason="the console's page is not installed; pip install nicegui")
sync_api = pytest.importorskip("playwright.sync_api")

CHROMIUM = os.environ.get("VIPRA_CHROMIUM") or next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
#: ms; starting the system takes most of a minute on two loaded processors.
START, ANSWER = 120_000, 15_000
#: ms after which nothing is held any more: deadman_proof and deadman_timeout below, and a slow machine's second.
LET_GO = 3000

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium; VIPRA_CHROMIUM=PATH names one")


def two_free_ports():
    while True:
        with socket.create_server(("127.0.0.1", 0)) as first:
            port = first.getsockname()[1]
            try:
                with socket.create_server(("127.0.0.1", port + 1)):
                    return port
            except OSError:
                continue


class Page:
    """What a person does and reads."""

    def __init__(self, page):
        self.page = page

    def shows(self, state, timeout=ANSWER):
        self.page.locator(".v-state", has_text=state).wait_for(timeout=timeout)

    def click(self, command):
        self.page.locator(f'[data-command="{command}"]').click()

    def touch(self, command):
        """Press a button while the pointer holds another one, as a second finger does."""
        self.page.locator(f'[data-command="{command}"]').dispatch_event("click")

    def state(self):
        return self.page.locator("[data-hold]").get_attribute("data-state")

    def is_held(self):
        self.page.locator('[data-hold][data-state="held"]').wait_for(timeout=ANSWER)

    def is_free(self):
        assert self.state() in (None, "free")

    def hold(self):
        box = self.page.locator("[data-hold]").bounding_box()
        self.page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        self.page.mouse.down()
        self.is_held()

    def release(self):
        self.page.mouse.up()

    def line(self, text, timeout=ANSWER):
        self.page.locator(".v-line", has_text=text).first.wait_for(timeout=timeout)

    def answer(self, text):
        self.page.locator(".v-answer[data-kind]", has_text=text).wait_for(timeout=ANSWER)

    def refuses(self, command, text):
        self.page.evaluate("delete document.querySelector('.v-answer').dataset.kind")  # not the answer before
        self.click(command)
        self.page.locator(".v-answer[data-kind=bad]", has_text=text).wait_for(timeout=ANSWER)

    def box(self, selector):
        return self.page.locator(selector).bounding_box()

    def picture(self, name):
        if folder := os.environ.get("SCREENSHOTS"):
            self.page.screenshot(path=Path(folder) / f"{name}.png")


@pytest.fixture(scope="module")
def desk(tmp_path_factory, unused_ros_domain):
    """The page in front of a running system; its folder is `desk.bags`."""
    from vipra_ros.nodes.system import System

    folder, port = tmp_path_factory.mktemp("console"), two_free_ports()
    parameters = f"/**/console:\n  ros__parameters:\n    port: {port}\n    deadman_proof: 1.0\n"
    parameters += "/**/executor:\n  ros__parameters:\n    overrun_fault: 5.0\n    state_timeout: 5.0\n"
    given = {"console": "true", "deadman_timeout": "1.0", "record": str(folder / "bags"), "task": "reach",
             "seed": "1005", "instruction": "go to the blue cube"}
    with System("models/tiny", log=folder / "system.log", parameters=parameters, **given) as system, \
            sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        tab = browser.new_page(viewport={"width": 1280, "height": 800})
        complaints = []
        tab.on("pageerror", lambda error: complaints.append(error))
        for _ in range(60):
            system.check()
            try:
                tab.goto(f"http://127.0.0.1:{port}", wait_until="domcontentloaded")
                break
            except sync_api.Error:  # it does not listen yet
                tab.wait_for_timeout(1000)
        page = Page(tab)
        page.bags = folder / "bags"
        page.shows("IDLE", START)
        page.line("The policy answers: go to the blue cube", START)
        yield page
        browser.close()
    assert not complaints


@pytest.mark.slow
def test_an_episode_by_mouse(desk):
    page, tab = desk, desk.page
    page.click("arm")
    page.answer("dead-man")  # nobody holds it
    page.shows("IDLE")

    page.hold()
    page.touch("arm")
    page.shows("RUNNING", START)
    page.touch("start")
    page.line("recording")
    tab.wait_for_timeout(3000)
    page.picture("console")
    page.touch("success")
    page.line("success 1")
    page.release()
    page.shows("HOLD")
    page.picture("console_released")

    page.hold()
    page.touch("arm")
    page.shows("RUNNING", START)
    page.touch("start")
    page.line("recording")
    tab.keyboard.press("Escape")
    page.shows("IDLE")
    page.release()
    page.picture("console_stopped")
    page.click("discard")
    page.line("discarded 1")
    kept = [p for p in page.bags.iterdir() if (p / "metadata.yaml").exists()]
    assert len(kept) == 1


@pytest.mark.slow
def test_the_space_bar_holds_and_never_stays_held(desk):
    page, tab = desk, desk.page
    words, keys = tab.locator("[data-words]"), tab.keyboard
    refused = "Home: the dead-man is not held; hold it while the arm goes home"
    page.is_free()
    tab.wait_for_timeout(LET_GO)
    page.refuses("home", refused)

    for take_focus in (words.focus, words.click):
        tab.evaluate("document.activeElement.blur()")
        keys.down("Space")
        page.is_held()
        take_focus()  # the release of the key is the field's now, not the page's
        page.is_free()
        keys.up("Space")
        tab.wait_for_timeout(LET_GO)
        page.is_free()
        page.refuses("home", refused)

    tab.evaluate("""() => { const b = document.querySelector('[data-hold]'); window.seen = new Set();
        new MutationObserver(() => window.seen.add(b.dataset.state)).observe(b, {attributes: true}); }""")
    words.fill("")
    words.press_sequentially("go to  the red cube ")
    assert words.input_value() == "go to  the red cube "
    keys.down("Space")
    tab.evaluate("document.activeElement.blur()")
    keys.down("Space")  # what a key that is kept down repeats
    tab.wait_for_timeout(500)
    keys.up("Space")
    assert tab.evaluate("[...window.seen]") in ([], ["free"]), "it was asked for, or held"


@pytest.mark.slow
@pytest.mark.parametrize("key", ("Enter", "Space"))
def test_the_keyboard_alone_stops(desk, key):
    desk.page.evaluate("delete document.querySelector('.v-answer').dataset.kind")
    desk.page.locator("[data-stop]").focus()
    desk.page.keyboard.press(key)
    desk.answer("STOP: ")
    desk.is_free()
    desk.page.evaluate("document.activeElement.blur()")


@pytest.mark.slow
def test_a_trial_is_answered_while_it_asks(desk, unused_ros_domain):
    from vipra_ros.nodes.spinner import Spinner, lone_node
    from vipra_ros.nodes.trial_buttons import LABELS, TrialButtons

    card, question = desk.page.locator(".v-asked"), desk.page.locator(".v-asked b")
    assert not card.is_visible()
    node = lone_node("trials", unused_ros_domain)
    buttons, spinner = TrialButtons(node), Spinner(node)
    try:
        buttons.tell(["trial 3 of 20: policy B, task push, block 2",
                      "  the policy is told: move the red cube to the yellow area", "  lay out: red cube on mark 2"])
        with buttons.asking("how did it go?", *LABELS):
            question.filter(has_text="how did it go?").wait_for(timeout=ANSWER)
            assert not desk.page.locator("[data-words]").is_visible(), "the words of a trial are the plan's"
            stop, last = map(desk.box, (".v-stop", ".v-card:has([data-command=discard])"))
            assert last["y"] + last["height"] <= stop["y"], "STOP lies over what is to be read"
            desk.page.wait_for_selector(".v-answer:not([data-kind])", state="attached", timeout=ANSWER)
            desk.picture("console_trial")
            desk.refuses("trial_start", "Go: not asked for now; how did it go?")
            desk.click("trial_success")
            desk.answer("Success: trial 3 of 20: policy B")
            assert buttons.key() == "y"
        question.wait_for(state="detached", timeout=ANSWER)
        desk.refuses("trial_failure", "Failure: not asked for now")
        assert buttons.key() == ""
    finally:
        spinner.close()
    card.wait_for(state="hidden", timeout=ANSWER)
