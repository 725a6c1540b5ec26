"""Reports in a real browser: nothing breaks, nothing is fetched, nothing is cut off, by day and by night."""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from depura.analysis.summary import summarise
from depura.analysis.verdicts import Conclusion, Flag, HeadlineStatus, Status, Verdict
from depura.evaluation.demo import study
from depura.evaluation.runner import Shard, run
from depura.reports import page

pytestmark = pytest.mark.browser

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
PHONE, DESK, PAPER = 390, 1440, 718
"""Pixels; PAPER is A4 less its margins."""
VERDICTS = (
    Verdict("V1", "the classifier breaks", Status.PASS, "Row undefended: 0.0 % (at most 2 %)."),
    Verdict("V6", "budget", Status.WARN, "Twice the steps take 4.2 points (1.0 to 7.9) more.", "Take more steps."),
    Verdict("V9", "random search", Status.NOT_RUN, "No row of random points."),
    Verdict(
        "V16", "gradient", Status.FAIL, "The gradient is not the slope: relative error 0.8.", "Mend " + "walk." * 30
    ),
)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed: no report was opened")
    if CHROMIUM is None or DRIVER is None:
        pytest.skip("Chromium or its driver is not installed: no report was opened in a browser")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for word in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(word)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    try:
        yield driver
    finally:
        driver.quit()


@pytest.fixture(scope="module")
def reports(chromium: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A finished report, one that is refused, and one of a run under way."""
    del chromium  # without it there is nothing to make them for
    folder = tmp_path_factory.mktemp("browser")
    small = study(images=4, attack_steps=2, eot=1, report_draws=6, curve=(0.005,), n_steps=3)
    small = replace(small, unit_images=2, curve_images=2)
    part = run(small, folder / "run", command="depura run study.py --out DIR " + "-S a=1 " * 40, shard=Shard(0, 2))
    page.write_reports(part)
    (folder / "part.html").write_bytes((part.path / "report.html").read_bytes())
    found = summarise(run(small, folder / "run", command="the same"))
    given, failed = (Conclusion("", status) for status in (HeadlineStatus.GIVEN, HeadlineStatus.FAILED))
    whole = replace(
        found, headline="robust accuracy at most 1 %", conclusions=(given,), flagged={}, verdicts=VERDICTS[:1]
    )
    refused = replace(
        whole,
        headline="V16 gradient failed: the gradient is not the slope.",
        conclusions=(failed,),
        flagged={"": (Flag.MASKED, Flag.WEAK)},
        verdicts=VERDICTS,
    )
    (folder / "whole.html").write_text(page.html(whole))
    (folder / "refused.html").write_text(page.html(refused))
    return {name: folder / f"{name}.html" for name in ("whole", "part", "refused")}


def shown(chromium: Any, file: Path, *, width: int = DESK, scheme: str = "light", media: str = "screen") -> None:
    """Open a report on a screen of a width."""
    dark = [{"name": "prefers-color-scheme", "value": scheme}]
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width == PHONE}
    chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media, "features": dark})
    chromium.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    chromium.get(file.as_uri())


EACH = pytest.mark.parametrize("which", ["whole", "part", "refused"])


@EACH
def test_nothing_goes_wrong_and_nothing_is_fetched(chromium: Any, reports: dict[str, Path], which: str) -> None:
    chromium.get("about:blank")
    chromium.get_log("performance")
    chromium.get_log("browser")
    shown(chromium, reports[which])
    assert chromium.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in chromium.get_log("performance")]
    asked = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
    assert reports[which].as_uri() in asked  # the log is of this page
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []


CUT_OFF = """
return [...document.querySelectorAll('body *')].filter(e => {
  const box = e.getBoundingClientRect();
  return box.width > 0 && (box.right > innerWidth + 1 || box.left < -1) && !e.parentElement.closest('.wide')
      && !e.closest('svg');
}).map(e => e.outerHTML.slice(0, 80)).concat(
  document.documentElement.scrollWidth > innerWidth ? ['page: ' + document.documentElement.scrollWidth] : []);
"""


@EACH
@pytest.mark.parametrize("width", [PHONE, DESK])
def test_nothing_is_wider_than_the_screen(chromium: Any, reports: dict[str, Path], which: str, width: int) -> None:
    shown(chromium, reports[which], width=width)
    assert chromium.execute_script("return innerWidth") == width
    assert chromium.execute_script(CUT_OFF) == []


CONTRAST = """
const light = c => { const [r, g, b] = c.match(/[\\d.]+/g).slice(0, 3).map(Number).map(v => v / 255)
  .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
const paper = light(getComputedStyle(document.body).backgroundColor);
return [...document.querySelectorAll(arguments[0])].map(e => {
  const ink = light(getComputedStyle(e)[arguments[1]]);
  return (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05); });
"""
"""WCAG's ratio of the luminance of elements to that of the page."""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_letters_and_charts_can_be_read_by_day_and_by_night(
    chromium: Any, reports: dict[str, Path], scheme: str
) -> None:
    shown(chromium, reports["refused"], scheme=scheme)
    paper = chromium.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert (paper == "rgb(255, 255, 255)") == (scheme == "light")
    for what, property_ in (("svg text", "fill"), ("p, td, dt, dd, small, figcaption, li", "color")):
        ratios = chromium.execute_script(CONTRAST, what, property_)
        assert len(ratios) > 20
        assert min(ratios) >= 4.5
    lines = chromium.execute_script(CONTRAST, "svg g[id*=-line2d] path[clip-path]", "stroke")
    assert min(lines) > 1.5  # grid lines are pale by their opacity, not by their colour


def test_every_id_is_there_once_and_every_picture_is_told_in_words(chromium: Any, reports: dict[str, Path]) -> None:
    shown(chromium, reports["refused"])
    ids = chromium.execute_script("return [...document.querySelectorAll('[id]')].map(e => e.id)")
    assert len(ids) == len(set(ids)) > 20
    nameless = "return document.querySelectorAll('img:not([alt]), figure.chart:not([aria-label])').length"
    assert chromium.execute_script(nameless) == 0
    lost = """
    const used = [...document.querySelectorAll('[clip-path]')].map(e => e.getAttribute('clip-path').slice(5, -1));
    return used.length ? used.filter(id => !document.getElementById(id)) : ['none'];"""
    assert chromium.execute_script(lost) == []


VISIBLE = """return [...document.querySelectorAll('.trajectory')].map(
  its => [...its.querySelectorAll('.frames figure')].map((f, k) => f.getBoundingClientRect().width ? k : -1)
    .filter(k => k >= 0));"""


def test_the_slider_shows_one_frame_after_the_other(chromium: Any, reports: dict[str, Path]) -> None:
    shown(chromium, reports["whole"], width=PHONE)
    before = chromium.execute_script(VISIBLE)
    assert len(before) >= 4
    assert all(frames == [0] for frames in before)
    slider = chromium.find_element("css selector", ".trajectory .slider input")
    slider.send_keys("\ue014" * 2)  # arrow right, twice
    assert chromium.execute_script(VISIBLE) == [[2], *before[1:]]
    assert slider.get_attribute("aria-valuetext").startswith("noised, sigma")
    slider.send_keys("\ue010")  # end
    assert slider.get_attribute("aria-valuetext") == "purified"
    chromium.find_element("css selector", ".trajectory .slider button").click()
    assert chromium.execute_script(VISIBLE)[0] == list(range(7))  # clean, adversarial, noised, 3 estimates, purified


def test_without_javascript_all_frames_stand_side_by_side(chromium: Any, reports: dict[str, Path]) -> None:
    chromium.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        shown(chromium, reports["whole"])
        evaluated = chromium.execute_cdp_cmd(
            "Runtime.evaluate", {"expression": f"(() => {{{VISIBLE}}})()", "returnByValue": True}
        )
    finally:
        chromium.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
    frames = evaluated["result"]["value"]
    assert len(frames) >= 4
    assert all(len(own) >= 6 and own == list(range(len(own))) for own in frames)


@EACH
def test_on_paper_no_table_is_cut_off_and_every_frame_is_there(
    chromium: Any, reports: dict[str, Path], which: str
) -> None:
    shown(chromium, reports[which], width=PAPER, media="print")
    boxes = "[...document.querySelectorAll('.wide')]"
    cut = f"return {boxes}.filter(e => e.scrollWidth > e.clientWidth + 1).map(e => e.ariaLabel)"
    assert chromium.execute_script(cut) == []
    assert all(len(frames) >= 6 for frames in chromium.execute_script(VISIBLE))
    printed = chromium.execute_cdp_cmd("Page.printToPDF", {"printBackground": True})
    assert base64.b64decode(printed["data"]).startswith(b"%PDF-")


def test_only_a_refused_report_alarms(chromium: Any, reports: dict[str, Path]) -> None:
    shown(chromium, reports["refused"])
    headline = chromium.find_element("css selector", ".headline.refused")
    assert headline.text == "V16 gradient failed: the gradient is not the slope."
    border = headline.value_of_css_property("border-left-width")
    assert float(border.removesuffix("px")) >= 3
    assert [e.text for e in chromium.find_elements("css selector", "td.FAIL, td.WARN")] == ["WARN", "FAIL"]
    shown(chromium, reports["whole"])
    assert chromium.find_elements("css selector", ".refused, .flags") == []
    assert chromium.find_element("css selector", ".headline").text == "robust accuracy at most 1 %"
