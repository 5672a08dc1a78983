"""The report in a real browser: no error in the console, and toggles that work."""

import pytest
from selenium import webdriver

from tests.reports.conftest import installed_browser, make_group
from trl_perception.reports.html import write_report

pytestmark = pytest.mark.slow

FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    chromium, driver = installed_browser()
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (*FLAGS.split(), f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    opened = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield opened
    opened.quit()


@pytest.fixture
def page(browser, clips, write_run):
    """The report of four groups at two steps, opened on a phone: `page(script)` runs JavaScript there."""
    groups = [make_group(clip, step=step) for step in (1, 2) for clip in clips[:2]]
    path = write_report(write_run(groups))
    size = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get(path.as_uri())
    yield browser.execute_script
    assert browser.get_log("browser") == []


def shades(page):
    return page(
        "return [...document.querySelectorAll('.tokens i')].map(t => t.className + t.style.getPropertyValue('--v'))"
    )


def press(page, attribute, value):
    page(f"document.querySelector('button[data-{attribute}=\"{value}\"]').click()")


def test_it_fits_a_phone_and_loads_nothing(page):
    assert page("return document.documentElement.scrollWidth") == 390
    assert page("return [...document.images].every(i => i.complete && i.naturalWidth > 0)")
    assert page("return performance.getEntriesByType('resource').filter(r => !r.name.startsWith('data:')).length") == 0


def test_tokens_are_shaded_by_weight_and_toggles_change_the_signal(page):
    # weights 0.5, 2, 0.5 of the scale [0.25, 2.5]: (0.5 - 0.25) / 2.25 = 0.111, (2 - 0.25) / 2.25 = 0.778
    weight = page(
        "return [...document.querySelectorAll('[data-answer=\"0\"] i')].slice(0, 3).map(t => t.style.getPropertyValue('--v'))"
    )
    assert [float(value) for value in weight] == pytest.approx([0.111, 0.778, 0.111], abs=1e-3)
    assert page("return document.querySelector('.ramp').dataset") == {"low": "0.25", "high": "2.5"}
    before = shades(page)
    press(page, "signal", "credit")
    assert shades(page) != before
    # the first answer's advantage is -1: its credit is below 0
    assert page("return document.querySelector('[data-answer=\"0\"] i').classList.contains('minus')")
    assert page("return document.querySelector('.ramp').dataset.low") == "-2.5"
    press(page, "signal", "token_weights")
    assert shades(page) == before


def test_answers_are_sorted_and_steps_chosen(page):
    order = "return [...document.querySelector('.answers').children].map(a => a.dataset.answer)"
    assert page(order) == ["1", "0"]  # by reward
    press(page, "sort", "sampled")
    assert page(order) == ["0", "1"]
    shown = "return [...document.querySelectorAll('.group')].filter(g => g.offsetHeight > 0).map(g => g.dataset.step)"
    assert page(shown) == ["2", "2"]  # the last step
    press(page, "step", "1")
    assert page(shown) == ["1", "1"]
    press(page, "step", "")
    assert page(shown) == ["1", "1", "2", "2"]


def test_a_token_shows_its_numbers_and_where_it_looked(page):
    bars = (
        "return [...document.querySelectorAll('.group:not([hidden]) .cell output')].slice(0, 4).map(o => o.textContent)"
    )
    assert page(bars) == ["10%", "20%", "30%", "40%"]
    page("""
        const token = document.querySelector('.group:not([hidden]) [data-answer="1"]').querySelectorAll('i')[1];
        token.dispatchEvent(new PointerEvent('pointerover', {bubbles: true, clientX: 50, clientY: 50}));
    """)
    said = page("return document.getElementById('tip').innerText")
    assert "red" in said
    assert "weight\t2.5" in said
    assert page(bars) == ["0%", "0%", "0%", "100%"]
    page("document.body.dispatchEvent(new PointerEvent('pointerdown', {bubbles: true}))")
    assert page("return document.getElementById('tip').hidden")
    assert page(bars) == ["10%", "20%", "30%", "40%"]


def test_arrow_keys_walk_over_the_tokens(browser, page):
    page("document.querySelector('.group:not([hidden]) [data-answer=\"0\"]').focus()")
    active = browser.switch_to.active_element
    active.send_keys("\ue014")  # right
    active.send_keys("\ue014")
    assert page("return document.querySelector('i.on').textContent") == " blue"


def test_a_chart_shows_its_values(page):
    page("""
        const chart = document.querySelector('svg[data-chart]'), box = chart.getBoundingClientRect();
        chart.dispatchEvent(new PointerEvent('pointermove', {bubbles: true, clientX: box.right - 5, clientY: box.top + 9}));
    """)
    assert page("return document.getElementById('tip').innerText") == "step 2\nreward\t0.75"
