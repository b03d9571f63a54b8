"""The page: complete, escaped, small, and without a request to anywhere."""

import html
import itertools
import json
import re
from html.parser import HTMLParser

import pytest

from nutlet.errors import StorageError
from nutlet.report import load_report, render, write_report

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>{{ 7*7 }}"


def text_of(page):
    return html.unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page)))


def test_every_part_of_the_report_is_on_the_page(report):
    text = text_of(render(report))
    for wanted in (
        "resnet20 on cifar10", "6.1x smaller", "3.7x faster at batch 1", "0.9 points less accurate", "1,094,321 bytes",
        "179,904 bytes", "104,512 bytes", "91.17 to 92.25 %", "p95 1.91 ms", "12.9 MiB", "PruneChannels: macs: 0.6",
        "carried the mask of 19 layers", "layer1.0.conv1", "99.60 %", report["command"], "avx512_vnni",
        "onnxruntime 1.22.0", "over dense zeros did not make the file smaller", "the machine was busy", "84.21 %",
        "Saved model", "Packed",
    ):  # fmt: skip
        assert wanted in text, wanted


def test_write_report_leaves_both_files_and_nothing_else(report, tmp_path):
    folder = tmp_path / "new" / "folder"
    write_report(report, folder)
    assert sorted(path.name for path in folder.iterdir()) == ["report.html", "report.json"]
    assert load_report(folder / "report.json") == json.loads(json.dumps(report))
    assert (folder / "report.html").read_text(encoding="utf-8") == render(report)


def test_same_report_same_page_whether_from_memory_or_from_disk(report, tmp_path):
    write_report(report, tmp_path)
    loaded = load_report(tmp_path / "report.json")
    # JSON sorts the options of a recipe; all else on the page is the same.
    assert len(render(loaded)) == len(render(report))


def test_nothing_is_written_where_the_report_is_wrong(report, tmp_path):
    del report["parity"]
    with pytest.raises(StorageError, match="'parity' is missing"):
        write_report(report, tmp_path)
    assert not list(tmp_path.iterdir())


class Tags(HTMLParser):
    """Collects every tag with the names of its attributes."""

    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, [name for name, _ in attrs]))


def poison(value, text):
    """Replace every text of the report, keys of free mappings as well."""
    if isinstance(value, str):
        return text
    if isinstance(value, (list, tuple)):
        return [poison(item, text) for item in value]
    if isinstance(value, dict):
        return {key: poison(item, text) for key, item in value.items()}
    return value


@pytest.mark.parametrize("text", [HOSTILE, "</style></title>-->", "javascript:alert(1)"])
def test_hostile_names_are_escaped_everywhere(report, text):
    report = poison(report, text)
    report["environment"] = {text: text}
    report["recipe"] = [{text: {text: text}}]
    report["history"][1]["method"] = {text: {text: text}}
    page = render(report)
    tags = Tags()
    tags.feed(page)
    assert {tag for tag, _ in tags.found}.isdisjoint({"script", "img", "iframe", "object", "embed", "base"})
    assert not [name for _, names in tags.found for name in names if name.startswith("on")]
    assert page.count("</style>") == page.count("</title>") - page.count("<svg") == 1
    assert html.escape(text)[:8] in page.replace("&#34;", "&quot;")


def test_characters_that_hide_are_replaced(report):
    report["model"]["name"] = "a\u202eb\x00c\ud800"
    page = render(report)
    assert "a\ufffdb\ufffdc\ufffd" in page
    page.encode("utf-8")


def test_no_request_can_leave_the_page(report):
    page = render(report)
    assert "default-src &#39;none&#39;" in page or "default-src 'none'" in page
    targets = re.findall(r"""(?:src|href|action|srcset|data)\s*=\s*["']([^"']*)""", page)
    assert targets
    assert all(target.startswith(("#", "data:")) for target in targets)
    assert "url(" not in page
    assert "@import" not in page
    assert "http://" not in page
    assert "https://" not in page
    assert "<script" not in page


def test_two_hundred_layers_stay_below_a_megabyte(make_report):
    page = render(make_report(layers=200))
    assert len(page.encode()) < 1_000_000
    assert page.count('class="meter"') == 200


def test_thousands_of_layers_are_cut_and_said(make_report):
    page = render(make_report(layers=3000))
    assert len(page.encode()) < 1_000_000
    assert "the 400 largest, 2600 more are in report.json" in text_of(page)


def test_what_was_not_measured_says_so(report):
    report["measurement"]["original"] = None
    report["measurement"]["compressed"] = {"bytes": 1000}
    report["measurement"]["agreement"] = None
    report["parity"] = None
    text = text_of(render(report))
    assert text.count("not measured") > 10
    assert "No original file was measured" in text
    report["measurement"] = None
    assert "there is no shipped file" in text_of(render(report))


def test_one_step_and_no_layers_and_no_warnings(make_report):
    report = make_report()
    report["history"] = report["history"][:1]
    report["history"][0]["size"]["layers"] = []
    report["warnings"], report["recipe"] = [], []
    text = text_of(render(report))
    assert "No layers were listed" in text
    assert "Before you trust" not in text


def test_removed_layers_are_named(report):
    report["history"][-1]["size"]["layers"] = report["history"][-1]["size"]["layers"][1:]
    assert "removed or replaced: layer1.0.conv1" in text_of(render(report))


def test_low_parity_is_not_called_agreement(report):
    report["parity"]["agreement"] = 0.8
    assert "should agree on 99.00 % or more" in text_of(render(report))


def test_headings_and_tables_are_semantic(report):
    page = render(report)
    levels = [int(level) for level in re.findall(r"<h([1-6])", page)]
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    assert page.count("<table") == page.count("<caption")
    assert all("scope=" in head for head in re.findall(r"<th\b[^>]*>", page))
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    for pointer in re.findall(r'(?:aria-labelledby="|href="#)([^"]+)"', page):
        assert pointer in ids
    assert all('role="img"' in svg and "aria-label" in svg for svg in re.findall(r"<svg[^>]*>", page))


def test_original_in_memory_is_said(report):
    figures = report["measurement"]["original"]
    report["measurement"]["original"] = {key: figures[key] for key in figures if key.startswith(("acc", "ex"))}
    text = text_of(render(report))
    assert "a module in memory, not a file" in text
    assert "Size not compared, speed not compared, 0.9 points less accurate" in text


def test_each_method_is_told_once_in_a_sentence(report):
    for step in (*report["history"][1:], report["history"][1]):
        step["sentence"] = f"What {next(iter(step['method']))} does, <b>told</b>."
    page = render({**report, "history": [*report["history"], report["history"][1]]})
    assert page.count("<li><strong>PruneChannels</strong>: What PruneChannels does, &lt;b&gt;told&lt;/b&gt;.</li>") == 1
    del report["history"][1]["sentence"]  # of an older version
    assert "What PruneChannels does" not in render(report)
