"""The web page in a real browser, over a real driver that bills real pods."""

import json
import os
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from node import REPOSITORY, Node, memory_cgroups, serve
from playwright.sync_api import Browser, ConsoleMessage, Page, expect, sync_playwright

MIB = 1 << 20
# How long anything may take on a busy machine, in milliseconds.
PATIENCE = 60_000
PICTURES = REPOSITORY / "docs" / "images"
HOSTILE = "pvc-<img src=x onerror=document.title='owned'>\u202egnp"

possible = os.geteuid() == 0 and memory_cgroups() is not None
pytestmark = pytest.mark.skipif(not possible, reason="mounting needs root, bills need memory cgroups of version 1")


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """A driver with a volume that two pods have filled, of which one has left; and two more volumes."""
    folder = tmp_path_factory.mktemp("web")
    with serve(folder) as node:
        node.create("pvc-features", 256 * MIB, "fraud/features")
        node.create("pvc-scores", 64 * MIB, "fraud/scores")
        node.create("pvc-archive", 384 * MIB, "sales/archive")
        node.create(HOSTILE, MIB, "evil/<script>document.title='owned'</script>")
        gone = node.start_pod("pvc-features", "0a2f", "fraud/prepare-0")
        gone.write("raw", 80 * MIB)
        node.start_pod("pvc-features", "7b1c", "fraud/train-0").write("model", 60 * MIB)
        node.start_pod("pvc-scores", "9d3e", "fraud/score-7c9d").write("scores", 60 * MIB)
        node.end_pod("pvc-features", gone)
        yield node


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Debian's Chromium."""
    with sync_playwright() as playwright:
        # As root there is no other way; the page under test is our own.
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(node: Node, browser: Browser) -> Iterator[Page]:
    """The page, open; any error in it fails the test."""
    page = browser.new_page(viewport={"width": 1180, "height": 900}, color_scheme="light")
    page.set_default_timeout(PATIENCE)
    expect.set_options(timeout=PATIENCE)
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda message: wrong.append(message.text) if is_wrong(message) else None)
    page.goto(node.url)
    yield page
    page.close()
    assert wrong == []


def is_wrong(message: ConsoleMessage) -> bool:
    """Whether the browser complains of the page, and not of an answer that a test has made up."""
    return message.type == "error" and not message.text.startswith("Failed to load resource")


def state(node: Node) -> dict:
    """What the page is told."""
    with urllib.request.urlopen(f"{node.url}api/state") as answer:
        return json.load(answer)


def test_a_volume_shows_its_home_and_who_is_billed_for_it(page: Page) -> None:
    row = page.locator('[data-volume="pvc-features"]')
    expect(row).to_contain_text("fraud/features")
    expect(row).to_contain_text("Resident")
    expect(row).to_contain_text("node-1")
    # The pod that writes pays for its file, and the retainer for the one of the pod that has left.
    expect(row.locator("li", has_text="fraud/train-0")).to_contain_text("60 MiB")
    expect(row.locator("li", has_text="retainer")).to_contain_text("80 MiB")
    expect(row).not_to_contain_text("prepare-0")
    expect(page.locator('[data-volume="pvc-scores"]')).to_contain_text("60 MiB of 64 MiB in use")
    expect(page.locator('[data-volume="pvc-archive"]')).to_contain_text("Booked")


def test_a_node_shows_its_budget_and_what_is_booked_used_and_retained(page: Page, node: Node) -> None:
    row = page.locator('[data-node="node-1"]')
    expect(row).to_contain_text("alive")
    for text in ("1 GiB", "705 MiB", "200 MiB", "80 MiB"):
        expect(row).to_contain_text(text)
    assert state(node)["nodes"][0]["booked"] == 705 * MIB
    label = row.get_by_role("img").get_attribute("aria-label")
    assert label is not None
    assert "on pods' bills" in label


def test_what_happens_is_seen_without_a_reload(page: Page, node: Node) -> None:
    page.evaluate("window.before = true")
    node.create("pvc-live", 2 * MIB, "fraud/live")
    row = page.locator('[data-volume="pvc-live"]')
    expect(row).to_contain_text("Booked")
    pod = node.start_pod("pvc-live", "1111", "fraud/live-0")
    expect(row).to_contain_text("Resident")
    pod.write("file", MIB)
    expect(row.locator("li", has_text="fraud/live-0")).to_contain_text("1 MiB")
    node.end_pod("pvc-live", pod)
    expect(row.locator("li", has_text="retainer")).to_contain_text("1 MiB")
    node.call("unstage", "pvc-live", str(node.staging("pvc-live")))
    node.call("delete", "pvc-live")
    expect(row).to_have_count(0)
    assert page.evaluate("window.before") is True
    expect(page.locator("#events")).to_contain_text("VolumeResident")


def test_names_of_others_are_text_and_nothing_else(page: Page) -> None:
    row = page.locator("tr", has_text="evil/<script>")
    expect(row).to_have_count(1)
    assert page.locator("main img, main script").count() == 0
    assert page.title() == "Vineyard"


def test_the_filter_finds_by_claim_node_phase_and_pod(page: Page) -> None:
    rows = page.locator("#volumes tr")
    expect(rows).to_have_count(4)
    for words, count in (("sales", 1), ("train-0", 1), ("booked", 2), ("fraud resident", 2), ("nothing like it", 0)):
        page.get_by_label("Filter volumes").fill(words)
        expect(rows).to_have_count(count)
    expect(page.locator("#no-volumes")).to_have_text("No volume matches the filter.")


def test_the_page_can_be_read_by_a_screen_reader_and_with_the_keyboard(page: Page) -> None:
    expect(page.locator('[data-volume="pvc-features"]')).to_be_visible()
    for name in ("Nodes", "Volumes", "What happened"):
        expect(page.get_by_role("region", name=name)).to_be_visible()
    expect(page.get_by_role("rowheader", name="fraud/features")).to_have_count(1)
    expect(page.get_by_role("status")).to_have_text("live")
    page.keyboard.press("Tab")
    expect(page.get_by_label("Filter volumes")).to_be_focused()


def test_text_has_enough_contrast_in_both_schemes(page: Page) -> None:
    expect(page.locator('[data-volume="pvc-features"]')).to_be_visible()
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        low = page.evaluate(CONTRAST)
        assert low == [], scheme


def test_a_driver_that_does_not_answer_is_said_to_and_what_was_seen_stays(page: Page) -> None:
    expect(page.get_by_role("status")).to_have_text("live")
    expect(page.locator('[data-volume="pvc-features"]')).to_be_visible()
    page.route("**/api/state", lambda route: route.fulfill(status=503, body="the records cannot be read"))
    expect(page.get_by_role("status")).to_contain_text("not live: the records cannot be read")
    expect(page.locator('[data-volume="pvc-features"]')).to_be_visible()
    page.unroute("**/api/state")
    expect(page.get_by_role("status")).to_have_text("live")


def test_the_pictures_of_the_guide(page: Page) -> None:
    expect(page.locator('[data-volume="pvc-features"] li', has_text="retainer")).to_contain_text("80 MiB")
    pictures = os.environ.get("VINEYARD_PICTURES")
    folder = Path(pictures) if pictures else PICTURES
    # The hostile volume is for the tests.
    page.evaluate(
        "document.querySelectorAll('#volumes tr').forEach((row) => row.textContent.includes('evil') && row.remove())"
    )
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        page.screenshot(path=folder / f"web-{scheme}.png", full_page=True)


# The texts whose contrast with what is behind them is below WCAG's 4.5.
CONTRAST = """() => {
  const parse = (color) => (color.match(/[\\d.]+/g) || []).map(Number);
  const light = ([r, g, b]) => {
    const linear = [r, g, b].map((it) => {
      const v = it / 255;
      return v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
  };
  const behind = (element) => {
    for (let it = element; it; it = it.parentElement) {
      const color = parse(getComputedStyle(it).backgroundColor);
      if (color.length === 3 || color[3] === 1) return color;
    }
    return [255, 255, 255];
  };
  const low = [];
  for (const element of document.querySelectorAll("body *")) {
    const own = [...element.childNodes].some((it) => it.nodeType === 3 && it.textContent.trim());
    if (!own || !element.checkVisibility() || element.closest(".hidden, script, style")) continue;
    const [a, b] = [light(parse(getComputedStyle(element).color)), light(behind(element))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) low.push(`${element.textContent.trim().slice(0, 30)}: ${ratio.toFixed(2)}`);
  }
  return [...new Set(low)];
}"""
