"""The section that says which step and which layer lost accuracy."""

import html
import json
import re

import jsonschema
import pytest

from nutlet.errors import StorageError
from nutlet.report import load_report, rebuilt, render, write_diagnosis, write_report
from nutlet.report.diagnosed import DOTS, ROWS, diagnosed
from nutlet.report.load import check_diagnosis, schema


def text_of(page):
    return html.unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page)))


def test_what_is_said_stands_on_the_page(report, diagnosis):
    jsonschema.validate(json.loads(json.dumps({**report, "diagnosis": diagnosis})), schema())
    text = text_of(render({**report, "diagnosis": diagnosis}))
    for wanted in (
        "Which step and which layer lost it?", "Step 1, PruneChannels, lost 7.6 points.", "exclude: [ <b>layer</b> ]",
        "85.00 %", "-6.7", "+0.290", "Measured with 63 passes", "20 more layers are in report.json",
        "The worst 12 of 60", "It grows most at",
    ):  # fmt: skip
        assert wanted.replace("[ ", "[").replace(" ]", "]") in text, wanted
    assert "Which step and which layer" not in text_of(render(report))


def test_code_is_marked_and_all_else_escaped(report, diagnosis):
    page = render({**report, "diagnosis": diagnosis})
    assert "<code>exclude: [&lt;b&gt;layer&lt;/b&gt;]</code>" in page
    assert "<b>" not in page


def test_much_is_cut_and_little_is_enough(report, diagnosis):
    big = {**diagnosis, "layers": diagnosis["layers"] * 50, "sites": diagnosis["sites"] * 50}
    shown = diagnosed(big)
    assert (len(shown["rows"]), shown["hidden"]) == (ROWS, 3000 - ROWS)
    assert str(shown["charts"][1].picture).count("<circle") <= DOTS
    little = diagnosed({**diagnosis, "layers": [], "sites": [], "words": [], "notes": []})
    assert little["charts"] == little["rows"] == []
    render({**report, "diagnosis": {**diagnosis, "layers": [], "sites": []}})
    # Nothing moved, and a result that was zero before.
    render(
        {**report, "diagnosis": {**diagnosis, "sites": [{"site": "a", "error": e, "cosine": 0} for e in (0, 0, 1e6)]}}
    )


def test_it_goes_into_the_report_beside_it(report, diagnosis, tmp_path):
    write_diagnosis(diagnosis, tmp_path / "alone")
    assert {path.name for path in (tmp_path / "alone").iterdir()} == {"diagnosis.json", "diagnosis.html"}
    write_report(report, tmp_path)
    write_diagnosis(diagnosis, tmp_path)
    assert json.loads((tmp_path / "diagnosis.json").read_text()) == diagnosis
    assert load_report(tmp_path / "report.json")["diagnosis"] == diagnosis
    assert "Which step and which layer" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(("field", "value"), [("after", 1e10), ("layers", [{"name": "a"}]), ("words", "none")])
def test_a_wrong_field_is_named(diagnosis, field, value):
    with pytest.raises(StorageError, match=field):
        check_diagnosis({**diagnosis, field: value})
    del diagnosis[field]
    with pytest.raises(StorageError, match=f"'{field}' is missing"):
        check_diagnosis(diagnosis)


def test_without_a_report_it_has_a_page_of_its_own(report, diagnosis, tmp_path):
    write_diagnosis(diagnosis, tmp_path)
    page = tmp_path / "diagnosis.html"
    text = page.read_text()
    assert "20 more layers are in diagnosis.json" in text_of(text)
    assert "report.json" not in text
    page.unlink()
    assert rebuilt(tmp_path) == (diagnosis, " ".join(diagnosis["words"]), (page,))
    assert page.read_text() == text
    assert rebuilt(tmp_path / "diagnosis.json")[2] == (page,)
    write_report(report, tmp_path)
    assert rebuilt(tmp_path)[2] == (tmp_path / "report.html",)
    (tmp_path / "report.json").unlink()
    (tmp_path / "diagnosis.json").write_text("{}")
    with pytest.raises(StorageError, match=r"diagnosis\.json.* is missing"):
        rebuilt(tmp_path)


def test_what_came_back_is_a_table(report, diagnosis):
    assert "Won back" not in text_of(render({**report, "diagnosis": diagnosis}))
    steps = [
        {"name": "original", "accuracy": 0.9, "lost": 0.0, "won_back": 0.0},
        {"name": "PruneChannels", "accuracy": 0.8, "lost": 0.1, "won_back": 0.075},
        {"name": "Distill", "accuracy": 0.875, "lost": 0.0, "won_back": 0.0},
    ]
    text = text_of(render({**report, "diagnosis": {**diagnosis, "accuracies": steps}}))
    assert "PruneChannels step 1, 80.00 % after it 10.0 7.5 2.5" in text
    assert "What steps lost, in percentage points" in text
