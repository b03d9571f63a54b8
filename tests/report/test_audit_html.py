"""The page of an audit: complete, escaped, small, and plain about what was not measured."""

import html
import itertools
import re
from html.parser import HTMLParser

import pytest

from nutlet.errors import StorageError
from nutlet.report import exposure, findings, rebuilt, render, render_audit, write_audit, write_report
from nutlet.report.curves import Copy, Roc, extraction, roc
from report.audit_example import attack, estimate, full_audit, small_audit

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>{{ 7*7 }}"
FIXED = {"role", "goal", "status", "verdict", "unit", "claim", "grade"}
"""Fields whose words the schema fixes."""


def text_of(page):
    return html.unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page)))


def test_every_part_of_the_audit_is_on_the_page():
    audit = full_audit()
    text = text_of(render_audit(audit))
    for wanted in (
        audit["sentence"], "model.onnx against original.onnx", "Compression trained on the members again",
        "by 3.5 points (1.5 to 5.5)",
        "within 2.0 points: any difference is below 0.8 points",
        "Worth less to a thief?", "-0.8 points", "-1.2 to -0.3 points",
        "goes with the accuracy that the file itself lost", "not run: needs logits; the victim shows probabilities",
        "1,100 (1,000 to 1,400) queries 1.13 USD",
        "takes 940 (850 to 1,100) answers, 0.94 USD",
        "not reached with 4,000 queries", "94.35 %", "93.75 to 94.95 %", "guessing 10.30 %",
        "47.00 to 53.00 %", "AUC 0.574", "2.24 %", "1,000 members", "false-positive rates below 0.1 %",
        "16 models of his own", "an AUC of 0.501", "/features/11/Conv, and 8 more", "pytorch 2.13.0", "AML.T0024.002",
        "NISTAML.033", "MITRE ATLAS 5.6.0", "By analogy: OWASP AISVS 1.0, 3.2.2", "cd" * 32, "21 min 24 s",
        "with labels of the thief's own", "979 for 250", "12,000, apart from the queries", "0.001 USD",
        audit["command"], "onnxruntime", "The thief without a query", "neither reached within 4,000",
    ):  # fmt: skip
        assert wanted in text, wanted
    for title, sentence in ((finding["title"], finding["sentence"]) for finding in audit["findings"]):
        assert title in text
        assert sentence in text


def test_a_file_alone_has_a_verdict_of_its_own_and_no_empty_columns():
    text = text_of(render_audit(small_audit()))
    for wanted in (
        "How exposed is model.onnx?", "A copy agrees on 71.00 % after 500 answers (Knockoff)",
        "LiRA: needs candidates for membership, which was not given",
        "FileLeaks: needs the shipped file, which was not given", "no interval", "none named",
        "without labels of the thief's own",
    ):  # fmt: skip
        assert wanted in text, wanted
    for empty in (
        "original.onnx",
        "the band is",
        "The three claims",
        "Agrees with the original",
        "Thief without a query",
    ):
        assert empty not in text.split("How to read this")[0], empty
    assert "against the original: not measured" not in text


def test_attacks_that_were_not_asked_for_are_one_line():
    audit = small_audit()
    for entry in audit["attacks"][1:]:
        entry["reason"] = "not asked for"
    text = text_of(render_audit(audit))
    assert "Not asked for: ActiveThief, LiRA, FileLeaks." in text
    assert text.count("not asked for") == 0
    assert "No attack of this kind was asked for." in text


def test_an_audit_in_which_nothing_ran_is_a_page_too():
    audit = small_audit()
    audit["protocol"].update(transfer=None, surrogate=None)
    audit = {**audit, "attacks": [], "claims": [], "findings": []}
    text = text_of(render_audit(audit))
    for wanted in ("No attack was considered", "No attack was run, so there is no finding", "not measured"):
        assert wanted in text, wanted


def test_attacks_without_a_single_figure_are_not_measured():
    audit = full_audit()
    for entry in audit["attacks"]:
        for victim in entry["victims"]:
            for key in set(victim) - {"artifact", "queries_sent"}:
                victim[key] = None
    audit.update(findings=findings(audit), exposure=exposure(audit))
    page = render_audit(audit)
    assert "<figure" not in page
    assert "No attack that says so was run." in text_of(page)


def test_a_file_that_only_got_worse_is_not_called_protected():
    audit = full_audit()
    tiles = render_audit(audit).split('<dl class="tiles">')[1].split("</dl>")[0]
    assert "Worth less to a thief? harder only with lost accuracy" in text_of(tiles)
    for claim in audit["claims"]:
        for measure in claim["rows"]:
            measure.update(verdict="harder only with lost accuracy", words="harder only with lost accuracy")
    audit["findings"] = findings(audit)
    page = render_audit(audit)
    assert 'class="mark harder"' not in page
    assert {finding["verdict"] for finding in audit["findings"]} == {"harder only with lost accuracy", "not measured"}


def test_a_rate_that_few_candidates_cannot_carry_is_not_shown():
    audit = full_audit()
    audit["protocol"]["members"]["smallest_fpr"] = 0.01
    for entry in audit["attacks"]:
        for victim in entry["victims"]:
            for item in victim.get("tpr_at") or []:
                item["claimable"] = item["fpr"] >= 0.01
    page = render_audit(audit)
    assert text_of(page).count("no claim too few candidates") == 4
    assert "0.83 %" not in text_of(page[: page.index('id="standards"')].split('id="membership"')[1])
    assert page.count('class="unsaid"') == 2


class Tags(HTMLParser):
    """Collects every tag with the names of its attributes."""

    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))


def poison(value, text, key=""):
    """Put ``text`` before every text of the audit that is free, and before the keys of free mappings."""
    if isinstance(value, str):
        return value if key in FIXED else f"{text}{value}"
    if isinstance(value, list):
        return [poison(item, text) for item in value]
    if isinstance(value, dict):
        free = key in ("facts", "environment", "steps", "queries_to", "metadata", "versions")
        return {f"{text}{name}" if free else name: poison(item, text, name) for name, item in value.items()}
    return value


@pytest.mark.parametrize("text", [HOSTILE, "</style></title>-->", "javascript:alert(1)"])
@pytest.mark.parametrize("build", [full_audit, small_audit])
def test_hostile_names_are_escaped_everywhere(report, build, text):
    audit = poison(build(), text)
    for page in (render_audit(audit), render({**report, "audit": audit})):
        tags = Tags()
        tags.feed(page)
        assert {tag for tag, _ in tags.found}.isdisjoint({"script", "img", "iframe", "object", "embed", "base"})
        assert not [name for _, attributes in tags.found for name in attributes if name.startswith("on")]
        assert page.count("</style>") == 1
        assert page.count("</title>") == 1 + page.count('<svg class="chart"') + page.count('<svg class="meter"')
        kinds = {word for _, attributes in tags.found for word in (attributes.get("class") or "").split()}
        assert all(re.fullmatch(r"[a-z]+", word) for word in kinds)
        assert html.escape(text)[:8] in page.replace("&#34;", "&quot;")


def test_characters_that_hide_are_replaced():
    audit = poison(full_audit(), "a\u202eb\x00c\ud800")
    page = render_audit(audit)
    assert "a\ufffdb\ufffdc\ufffd" in page
    page.encode("utf-8")


def test_no_request_can_leave_the_page(report):
    for page, links in (
        (render_audit(full_audit()), set()),
        (render({**report, "audit": full_audit()}), {"audit.html"}),
    ):
        assert "default-src 'none'" in page
        targets = re.findall(r"""(?:src|href|action|srcset|data)\s*=\s*["']([^"']*)""", page)
        assert {target for target in targets if not target.startswith(("#", "data:"))} == links
        for forbidden in ("url(", "@import", "http://", "https://", "<script"):
            assert forbidden not in page


@pytest.mark.parametrize("build", [full_audit, small_audit])
def test_headings_and_tables_are_semantic(report, build):
    for page in (render_audit(build()), render({**report, "audit": build()})):
        levels = [int(level) for level in re.findall(r"<h([1-6])", page)]
        assert levels.count(1) == 1
        assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
        assert page.count("<table") == page.count("<caption")
        assert all("scope=" in head for head in re.findall(r"<th\b[^>]*>", page))
        ids = re.findall(r'\bid="([^"]+)"', page)
        assert len(ids) == len(set(ids))
        for pointer in re.findall(r'(?:aria-labelledby="|href="#)([^"]+)"', page):
            assert pointer in ids
        pictures = [svg for svg in re.findall(r"<svg[^>]*>", page) if 'class="plot"' not in svg]
        assert pictures
        assert all('role="img"' in svg and "aria-label" in svg for svg in pictures)


def test_a_report_without_an_audit_says_nothing_of_theft(report):
    assert render({**report, "audit": None}) == render(report)
    assert 'id="theft"' not in render(report)


def test_the_report_shows_claims_and_the_best_of_each_kind(report):
    page = render({**report, "audit": full_audit()})
    text = text_of(page[page.index('<section id="theft"') : page.index('<section id="reproduce"')])
    for wanted in ("Harder to extract?", "ActiveThief: agreement", "LiRA: members found", "the same"):
        assert wanted in text, wanted
    assert "JacobianAugmentation: agreement" not in text


def test_a_huge_audit_is_cut_and_said():
    audit = full_audit()
    point = audit["attacks"][0]["victims"][1]["curve"][0]
    curve = [{**point, "queries": 10 * i} for i in range(30)]
    victim = {"artifact": "model.onnx", "queries_sent": 300, "curve": curve}
    audit["attacks"] += [attack(f"Clone{i}", "clone", "labels", "x", "x", [victim]) for i in range(150)]
    line = {"fpr": [i / 19_999 for i in range(20_000)], "tpr": [(i / 19_999) ** 0.5 for i in range(20_000)]}
    audit["attacks"][3]["victims"][0]["roc"] = line
    audit["attacks"][6]["victims"][0]["facts"] = {f"fact {i}": ["x" * 100] * 50 for i in range(500)}
    page = render_audit(audit)
    assert len(page.encode()) < 1_000_000
    assert "141 more attacks of this kind are in audit.json" in text_of(page)
    assert "Clone149" in page


def test_money_below_a_cent_is_not_nothing():
    audit = full_audit()
    audit["protocol"]["price"] = {"per_query": 1e-6, "currency": "EUR"}
    assert "< 0.01 EUR" in text_of(render_audit(audit))


def numbers(pattern, picture):
    return [float(found) for found in re.findall(pattern, picture)]


def test_extraction_curve_places_points_on_a_logarithmic_axis():
    points = [(0.2, 0.1, 0.3), (0.5, 0.4, 0.6), (0.8, 0.7, 0.9)]
    picture = extraction("name", "title", [Copy("after", [10, 100, 1000], points, [0.1, None, 0.1])], 0.1)
    left, middle, right = numbers(r'<circle class="dot after" cx="([\d.]+)%', picture)
    assert right - middle == pytest.approx(middle - left, abs=0.02)
    low, half, high = numbers(r'<circle[^>]* cy="([\d.]+)"', picture)
    assert low > half > high
    assert low - half == pytest.approx(half - high, abs=0.2)
    assert picture.count('class="band after"') == picture.count('class="baseline after"') == 1
    assert picture.count('class="chance"') == 1
    assert "after, 1,000 queries: 80.00 % (70.00 to 90.00 %)" in picture


def test_extraction_curve_of_one_budget_and_without_intervals():
    picture = extraction("name", "title", [Copy("after", [0], [(0.5, None, None)], [0.4])], None)
    assert picture.count("<circle") == 1
    assert "band" not in picture
    assert "trace" not in picture
    assert 'class="baseline after"' in picture
    assert "chance" not in picture


def test_labels_of_near_budgets_are_left_out_but_never_the_last():
    queries = [1000, 1050, 1100, 1150, 4000]
    picture = extraction("name", "title", [Copy("after", queries, [(0.5, None, None)] * 5, [None] * 5)], 0.1)
    below = re.findall(r'y="235"[^>]*>([\d,]+)<', picture)
    assert below[-1] == "4,000"
    assert len(below) == 2


def test_bands_stay_within_the_plot():
    picture = extraction("name", "title", [Copy("after", [1, 2], [(0.9, 0.2, 1.7), (0.9, -1, 1)], [None, None])], 0.5)
    heights = numbers(r"[\d.]+,(-?[\d.]+)", re.search(r'class="band after" points="([^"]+)"', picture)[1])
    assert min(heights) >= 0
    assert max(heights) <= 100


def test_roc_curve_is_logarithmic_on_both_axes_and_thinned():
    line = [(i / 10_000, i / 10_000) for i in range(10_001)]
    picture = roc("name", "title", [Roc("before", line)])
    points = re.search(r'class="trace before" points="([^"]+)"', picture)[1].split()
    assert 50 < len(points) < 500
    for point in points:  # who guesses is on the diagonal
        across, down = map(float, point.split(","))
        assert across + down == pytest.approx(100, abs=0.02)
    assert "before: 0.10 % at 0.1 %; before: 1.00 % at 1 %" in picture


def test_roc_curve_that_starts_above_the_axis_begins_at_the_edge():
    picture = roc("name", "title", [Roc("after", [(0, 0), (0, 0.2), (0.5, 0.6), (1, 1)])], smallest=0.01)
    first, *_ = re.search(r'class="trace after" points="([^"]+)"', picture)[1].split()
    assert float(first.split(",")[0]) == 0
    assert "at 0.1 %" not in picture
    assert 'class="unsaid"' in picture


def test_estimates_of_the_example_hold_their_own_mean():
    found = estimate(0.5)
    assert found["low"] < min(found["values"]) <= found["value"] <= max(found["values"]) < found["high"]


def test_pages_are_rebuilt_from_their_data(report, tmp_path):
    write_report(report, tmp_path)
    write_audit(full_audit(), tmp_path)
    before = {name: (tmp_path / name).read_text() for name in ("report.html", "audit.html")}
    for name in before:
        (tmp_path / name).unlink()
    content, sentence, pages = rebuilt(tmp_path)
    assert [page.name for page in pages] == list(before)
    assert {page.name: page.read_text() for page in pages} == before
    assert "history" in content
    assert sentence
    (tmp_path / "report.json").unlink()
    content, sentence, pages = rebuilt(tmp_path)
    assert (sentence, pages) == (full_audit()["sentence"], (tmp_path / "audit.html",))
    with pytest.raises(StorageError, match=r"report\.json"):
        rebuilt(tmp_path / "nowhere")
