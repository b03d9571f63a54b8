"""The page in a real browser, with JavaScript off: it fits, it asks nobody for anything, it can be read."""

import shutil

import pytest

from nutlet.report import write_report

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


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=chromium, args=FLAGS)
        yield opened
        opened.close()


@pytest.mark.parametrize("width", [1280, 375])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_in_chromium(browser, report, tmp_path, scheme, width):
    report["model"]["name"] = "a_name_without_any_place_to_break_" * 4
    report["history"][1]["notes"] = ["<script>document.title = 'taken over'</script>"]
    write_report(report, tmp_path)
    address = (tmp_path / "report.html").as_uri()
    context = browser.new_context(
        java_script_enabled=False, color_scheme=scheme, viewport={"width": width, "height": 900}
    )
    page = context.new_page()
    said, asked = [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(address)

    assert said == []
    assert [url for url in asked if not url.startswith("data:")] == [address]
    assert "taken over" not in page.title()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, background[4:-1].split(","))) > 382) == (scheme == "light")
    for kind in ("table", "svg", "figure", "h2", "caption"):
        places = page.locator(kind)
        assert places.count() >= 4
        assert all(places.nth(index).is_visible() for index in range(places.count()))
    for box in page.locator("svg.chart").all():
        size = box.bounding_box()
        assert size["width"] > 200
        assert size["height"] > 80
        assert all(
            text.bounding_box()["x"] + text.bounding_box()["width"] <= width for text in box.locator("text").all()
        )
    contrasts = page.evaluate(CONTRASTS)
    assert len(contrasts) > 20
    assert {name: ratio for name, ratio in contrasts.items() if ratio < 4.5} == {}

    picture = tmp_path / f"{scheme}-{width}.png"
    page.screenshot(path=picture, full_page=True)
    assert picture.stat().st_size > 10_000
    context.close()


def test_page_prints_on_paper(browser, report, tmp_path):
    write_report(report, tmp_path)
    context = browser.new_context(java_script_enabled=False, color_scheme="dark")
    page = context.new_page()
    page.goto((tmp_path / "report.html").as_uri())
    page.pdf(path=tmp_path / "report.pdf", format="A4")
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert not page.locator("nav").is_visible()
    context.close()
