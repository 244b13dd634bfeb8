"""The page of many runs in a browser: its looks and behaviour."""

import shutil

import pytest
import tensorflow as tf
from helpers import accuracy
from helpers import leave
from helpers import palette
from helpers import results_of
from helpers import robust
from runs_of_pages import leave_three

from tfsam.reports import page

ARGUMENTS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic"),
    *("--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
)


@pytest.fixture(scope="module")
def browser():
    reason = "needs playwright, of the dev extra"
    api = pytest.importorskip("playwright.sync_api", reason=reason)
    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("needs chromium or google-chrome on the PATH")
    with api.sync_playwright() as driver:
        started = driver.chromium.launch(
            executable_path=path, args=list(ARGUMENTS)
        )
        yield started
        started.close()


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    folder = leave_three(tmp_path_factory.mktemp("browser").resolve())
    for i in range(8):
        rows = [robust("pgd", "linf", 0.1, i), robust("pgd", "l2", 0.5, 9)]
        results = results_of("st", accuracy(9), rows, seed=i)
        leave(folder / f"more{i}", results)
    page.write([folder], folder / "report.html")
    return (folder / "report.html").as_uri()


@pytest.fixture
def opened(browser, address):
    """Opens the page; it must log nothing and load nothing."""
    heard, tabs = [], []

    def open_(width=1280, scheme="light"):
        tab = browser.new_page(
            viewport={"width": width, "height": 900}, color_scheme=scheme
        )
        tabs.append(tab)
        tab.on("console", lambda message: heard.append(message.text))
        tab.on("pageerror", lambda error: heard.append(str(error)))
        tab.on("dialog", lambda dialog: heard.append(dialog.message))
        tab.on("request", lambda request: asked(request.url))
        tab.goto(address)
        return tab

    def asked(url):
        if not url.startswith(("file:", "data:")):
            heard.append(url)

    yield open_
    for tab in tabs:
        assert tab.title() == "Robustness report"
        assert not tab.locator("img[src=x]").count()
        tab.close()
    assert not heard


@pytest.mark.slow
@pytest.mark.parametrize(
    ("width", "scheme"), [(1280, "light"), (1280, "dark"), (360, "light")]
)
def test_it_looks_as_it_should(opened, tmp_path, width, scheme):
    tab = opened(width, scheme)
    path = tmp_path / "page.png"
    tab.screenshot(path=path, full_page=True)
    picture = tf.io.decode_png(path.read_bytes(), channels=3).numpy()
    assert picture.shape[1] == width
    ground = palette(scheme)["ground"]
    expected = [int(ground[i : i + 2], 16) for i in (1, 3, 5)]
    is_ground = (picture == expected).all(axis=2)
    assert 0.5 < is_ground.mean() < 0.97
    assert tab.evaluate("document.documentElement.scrollWidth") == width
    # Every chart has curves in colours that differ.
    for chart in tab.locator("svg.chart").all():
        strokes = chart.locator(".mark").evaluate_all(
            "marks => marks.map(mark => getComputedStyle(mark).fill)"
        )
        assert strokes
        assert chart.get_attribute("aria-label").endswith(".")


def texts(tab, column):
    rows = tab.locator("#runs tbody tr")
    return rows.evaluate_all(
        f"rows => rows.map(row => row.cells[{column}].firstChild.textContent)"
    )


@pytest.mark.slow
def test_the_table_sorts(opened):
    tab = opened()
    head = tab.locator("#runs th", has_text="0.1").first
    column = int(head.get_attribute("data-position"))
    before = texts(tab, column)
    assert before[1:] == ["70.0", "80.0", *(f"{10 * i:.1f}" for i in range(8))]
    numbers = sorted(map(float, before[1:]))
    for direction, expected in (
        ("ascending", numbers),
        ("descending", numbers[::-1]),
        ("ascending", numbers),
    ):
        head.locator("button").press("Enter")
        assert head.get_attribute("aria-sort") == direction
        # Rows without a number come last in both.
        assert texts(tab, column) == [*(f"{x:.1f}" for x in expected), "failed"]
    tab.locator("#runs th", has_text="run").first.locator("button").click()
    assert head.get_attribute("aria-sort") == "none"
    names = texts(tab, 0)
    assert names[-1] == "more7"
    assert names.index("full") < names.index("least") < names.index("more0")


@pytest.mark.slow
def test_runs_are_selected(opened):
    tab = opened()

    def curves(run):
        return tab.locator(f"#robustness .panel [data-run='{run}']").count()

    # The first eight at first; pgd l-inf, l2, and autoattack.
    assert [bool(curves(run)) for run in range(11)] == [True] * 8 + [False] * 3
    assert curves(1) == 3
    assert tab.locator("#selected").text_content() == "8 of 11 drawn"
    tab.locator("input[value='1']").uncheck()
    assert curves(1) == 0
    assert tab.locator("#examples article:visible").count() == 1
    # Its colour is free, and the next run takes it; the others keep theirs.
    kept = tab.locator("#robustness .panel [data-run='2']").first
    look = kept.get_attribute("class")
    tab.locator("input[value='9']").check()
    assert curves(9) == 2
    nine = tab.locator("#robustness .panel [data-run='9']").first
    assert "colour-1" in nine.get_attribute("class")
    assert kept.get_attribute("class") == look
    tab.locator("[data-select=none]").click()
    assert tab.locator(".panel [data-run]").count() == 0
    tab.locator("[data-select=all]").click()
    assert all(curves(run) for run in range(11))
    assert tab.locator("#robustness .legend li").count() == 11


@pytest.mark.slow
def test_charts_say_their_numbers(opened):
    tab = opened()
    chart = tab.locator("#robustness svg.chart", has_text="0.2").first
    chart.focus()
    for _ in range(9):  # It stops at the end.
        chart.press("ArrowRight")
    tooltip = tab.locator("#tooltip")
    assert tooltip.text_content() == "epsilon 0.2full30.0 %10.0\u201340.0"
    chart.press("Escape")
    assert not tooltip.is_visible()
    chart.hover(position={"x": 60, "y": 60})
    assert tooltip.text_content().startswith("naturalfull100.0 %")
    cost = tab.locator("#cost svg.chart")
    options = tab.locator("#cost select").first
    options.select_option("natural")
    assert "full 100.0 % at 8 cost" in cost.get_attribute("aria-label")
    tab.locator("#cost select").last.select_option(index=1)
    assert "full 100.0 % at 1.5 minutes" in cost.get_attribute("aria-label")


@pytest.mark.slow
def test_the_theme_switches(opened):
    tab = opened()

    def ground():
        return tab.evaluate("getComputedStyle(document.body).backgroundColor")

    light = ground()
    tab.locator("#theme").click()
    dark = ground()
    tab.locator("#theme").click()
    assert dark != light == ground() == "rgb(255, 255, 255)"


@pytest.mark.slow
def test_head_and_first_column_stay_in_sight(opened):
    tab = opened(360)
    frame = tab.locator("#runs .scroller")
    head = tab.locator("#runs thead th").first
    before = head.bounding_box()
    frame.evaluate("frame => frame.scrollTo(150, 150)")
    left, top = frame.evaluate("frame => [frame.scrollLeft, frame.scrollTop]")
    assert left == 150
    after = head.bounding_box()
    assert after["x"] == before["x"]
    assert after["y"] >= frame.bounding_box()["y"]
    assert top == 0 or after["y"] > before["y"] - top


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 360])
def test_counts_signs_and_corruptions_are_drawn(browser, tmp_path, width):
    finding = {"indicator": "a_sign", "message": "Of it.", "remedy": "So."}
    case = {"norm": "linf", "epsilon": 0.1, "epsilon_text": "0.1"}
    attacks = [{"attack": "pgd", "broken": 5}]
    kinds = [
        {"corruption": kind, "severity": severity, **accuracy(9 - severity)}
        for kind in ("fog", "shot_noise")
        for severity in (1, 2)
    ]
    results = results_of(
        "st",
        accuracy(9),
        [robust("pgd", "linf", 0.1, 4, diagnosis=[finding])],
        worst_case=[case | accuracy(4) | {"attacks": attacks}],
        corruptions={
            **{"name": "mine", "rows": kinds, "mean_accuracy": 0.75},
            **{"n": 10, "interval": [0.5, 1.0]},
        },
    )
    run, heard = leave(tmp_path / "run", results), []
    page.write([run], tmp_path / "report.html")
    tab = browser.new_page(viewport={"width": width, "height": 900})
    tab.on("console", lambda message: heard.append(message.text))
    tab.on("pageerror", lambda error: heard.append(str(error)))
    tab.goto((tmp_path / "report.html").as_uri())
    assert tab.evaluate("document.documentElement.scrollWidth") == width
    charts = tab.locator("#corruptions svg.chart")
    labels = [chart.get_attribute("aria-label") for chart in charts.all()]
    assert labels == [
        "fog. run 70.0 % at severity 2.",
        "shot noise. run 70.0 % at severity 2.",
    ]
    charts.first.focus()
    charts.first.press("ArrowRight")
    assert tab.locator("#tooltip").text_content().startswith("cleanrun90.0 %")
    bar, filled = (
        tab.locator(f"#worst-case {part}").bounding_box()["width"]
        for part in (".bar", ".bar rect")
    )
    assert filled == pytest.approx(bar / 2, abs=1)
    assert tab.locator("#worst-case article:visible").count() == 1
    tab.locator("[data-select=none]").click()
    assert tab.locator("#worst-case article:visible").count() == 0
    assert tab.locator("#trust td", has_text="a sign: Of it.").is_visible()
    tab.close()
    assert not heard
