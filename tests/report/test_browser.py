"""The page in a real browser, with JavaScript off: it fits, it asks nobody for anything, it can be read."""

import itertools
import shutil

import pytest

from nutlet.report import write_audit, write_report
from report.audit_example import full_audit, small_audit

playwright = pytest.importorskip(
    "playwright.sync_api", reason="needs the package playwright: pip install 'nutlet[dev]'", exc_type=ImportError
)
chromium = shutil.which("chromium")
pytestmark = pytest.mark.skipif(chromium is None, reason="needs the browser chromium: apt install chromium")

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
         "--disable-sync", "--no-first-run"]  # fmt: skip

CONTRASTS = """() => {
  const parse = text => (text.match(/[\\d.]+/g) || []).map(Number);
  const light = ([r, g, b]) => [r, g, b].map(v => v / 255)
    .map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = node => {
    for (; node; node = node.parentElement) {
      const colour = parse(getComputedStyle(node).backgroundColor);
      if (colour.length === 3 || colour[3] === 1) return colour;
    }
    return [255, 255, 255];
  };
  const found = {};
  for (const node of document.querySelectorAll('body *')) {
    if (![...node.childNodes].some(n => n.nodeType === 3 && n.textContent.trim()) || node.tagName === 'title') continue;
    const style = getComputedStyle(node);
    const ink = parse(node.tagName === 'text' ? style.fill : style.color);
    const [a, b] = [light(ink), light(behind(node))].sort((x, y) => y - x);
    const name = node.tagName + '.' + (node.getAttribute('class') || '');
    found[name] = Math.min(found[name] || 99, (a + 0.05) / (b + 0.05));
  }
  return found;
}"""


HIDDEN = """() => [...document.querySelectorAll('table, svg.chart, svg.meter, figure, h2, caption')]
  .filter(node => !node.checkVisibility() || !node.getBoundingClientRect().height).map(node => node.outerHTML)"""

CHARTS = """() => [...document.querySelectorAll('svg.chart')].map(chart => {
  const box = node => node.getBoundingClientRect().toJSON();
  const texts = [...chart.querySelectorAll('text')].map(text => ({...box(text), says: text.textContent}));
  return {...box(chart), texts};
})"""


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=chromium, args=FLAGS)
        yield opened
        opened.close()


def look_at(browser, address, scheme, width):
    """Open a page and check what holds for every page: it fits, it is silent, it can be read; keep a picture of it."""
    context = browser.new_context(
        java_script_enabled=False, color_scheme=scheme, viewport={"width": width, "height": 900}
    )
    page = context.new_page()
    said, asked = [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(address.as_uri())

    assert said == []
    assert [url for url in asked if not url.startswith("data:")] == [address.as_uri()]
    assert "taken over" not in page.title()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, background[4:-1].split(","))) > 382) == (scheme == "light")
    assert page.evaluate(HIDDEN) == []
    for chart in page.evaluate(CHARTS):
        assert chart["width"] > 200
        assert chart["height"] > 80
        assert all(text["x"] >= 0 and text["x"] + text["width"] <= width for text in chart["texts"])
        assert [pair for pair in itertools.combinations(chart["texts"], 2) if overlap(*pair)] == []
    contrasts = page.evaluate(CONTRASTS)
    assert len(contrasts) > 20
    assert {name: ratio for name, ratio in contrasts.items() if ratio < 4.5} == {}

    picture = address.with_name(f"{address.stem}-{scheme}-{width}.png")
    page.screenshot(path=picture, full_page=True)
    assert picture.stat().st_size > 10_000
    counts = {kind: page.locator(kind).count() for kind in ("table", "svg.chart", "figure", "h2")}
    context.close()
    return counts


def overlap(a, b):
    """Whether two boxes share more than the halo around figures, 4 pixels, in both directions."""
    return all(
        min(a[at] + a[long], b[at] + b[long]) - max(a[at], b[at]) > 4 for at, long in (("x", "width"), ("y", "height"))
    )


@pytest.mark.parametrize("width", [1280, 375])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_in_chromium(browser, report, tmp_path, scheme, width):
    report["model"]["name"] = "a_name_without_any_place_to_break_" * 4
    report["history"][1]["notes"] = ["<script>document.title = 'taken over'</script>"]
    write_report(report, tmp_path)
    counts = look_at(browser, tmp_path / "report.html", scheme, width)
    assert min(counts.values()) >= 4


def test_the_finding_is_on_the_screen_of_a_phone(browser, report, tmp_path):
    write_report(report, tmp_path)
    page = browser.new_page(viewport={"width": 390, "height": 844})
    page.goto((tmp_path / "report.html").as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    ends = page.evaluate("[...document.querySelectorAll('.finding')].map(c => c.getBoundingClientRect().right)")
    assert len(ends) > 5
    assert max(ends) <= 390
    page.close()


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("light", 375), ("dark", 375)])
def test_audit_in_chromium(browser, tmp_path, scheme, width):
    audit = full_audit()
    audit["sentence"] = "<script>document.title = 'taken over'</script>"
    audit["command"] = "a_command_without_any_place_to_break_" * 8
    write_audit(audit, tmp_path)
    counts = look_at(browser, tmp_path / "audit.html", scheme, width)
    assert counts["svg.chart"] == counts["figure"] == 5
    assert counts["table"] >= 9


def test_the_least_audit_and_a_report_with_one_in_chromium(browser, report, tmp_path):
    write_audit(small_audit(), tmp_path / "small")
    assert look_at(browser, tmp_path / "small" / "audit.html", "dark", 375)["svg.chart"] == 1
    write_report({**report, "audit": full_audit()}, tmp_path)
    assert look_at(browser, tmp_path / "report.html", "light", 375)["svg.chart"] == 6


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 375)])
def test_a_report_with_a_diagnosis_in_chromium(browser, report, diagnosis, tmp_path, scheme, width):
    write_report({**report, "diagnosis": diagnosis}, tmp_path)
    assert look_at(browser, tmp_path / "report.html", scheme, width)["svg.chart"] == 6


@pytest.mark.parametrize("name", ["report", "audit"])
def test_page_prints_on_paper(browser, report, tmp_path, name):
    write_report(report, tmp_path)
    write_audit(full_audit(), tmp_path)
    a4 = 718  # pixels between the margins
    context = browser.new_context(
        java_script_enabled=False, color_scheme="dark", viewport={"width": a4, "height": 1000}
    )
    page = context.new_page()
    page.goto((tmp_path / f"{name}.html").as_uri())
    page.pdf(path=tmp_path / "page.pdf", format="A4")
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert not page.locator("nav").is_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= a4
    context.close()
