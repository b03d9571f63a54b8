"""An audit as data: described in full, refused with a reason, and mapped to the ids of standards."""

import copy
import json
import random
import re

import jsonschema
import pytest

from nutlet.errors import StorageError
from nutlet.report import findings, load_audit, load_report, verdict, write_audit, write_report
from nutlet.report.load import check, check_audit, schema
from nutlet.report.standards import VERSIONS
from report.audit_example import full_audit, row, small_audit

AUDITS = {"full": full_audit, "small": small_audit}
BARE = jsonschema.Draft202012Validator({"$ref": "#/$defs/audit", "type": "object", "$defs": schema()["$defs"]})


def thinned():
    """Give the full audit with short ROC curves: there is nothing to learn from a thousand equal numbers."""
    audit = json.loads(json.dumps(full_audit()))
    for attack in audit["attacks"]:
        for victim in attack["victims"]:
            if victim.get("roc"):
                victim["roc"] = {"fpr": [0, 0.5, 1], "tpr": [0, 0.7, 1]}
    return audit


@pytest.mark.parametrize("build", AUDITS.values(), ids=AUDITS)
def test_examples_fit_the_schema_alone_and_within_a_report(build, report):
    audit = json.loads(json.dumps(build()))
    BARE.validate(audit)
    check_audit(audit)
    report["audit"] = audit
    jsonschema.validate(json.loads(json.dumps(report)), schema(), jsonschema.Draft202012Validator)
    check(report)


def test_a_report_may_say_that_there_is_no_audit(report):
    report["audit"] = None
    jsonschema.validate(json.loads(json.dumps(report)), schema(), jsonschema.Draft202012Validator)
    check(report)


def test_every_field_of_the_example_is_in_the_schema():
    def walk(value, rule, field):
        if "$ref" in rule:
            rule = schema()["$defs"][rule["$ref"].rsplit("/", 1)[1]]
        if isinstance(value, dict) and "properties" in rule:
            for key, item in value.items():
                assert key in rule["properties"], f"{field}.{key}"
                walk(item, rule["properties"][key], f"{field}.{key}")
        elif isinstance(value, list):
            for item in value:
                walk(item, rule.get("items", {}), field)

    walk(thinned(), schema()["$defs"]["audit"], "audit")


def places(value, path=()):
    """Yield the way to every value within ``value``."""
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield (*path, key)
        yield from places(value[key], (*path, key))


def accepted(audit):
    try:
        check_audit(audit)
    except StorageError:
        return False
    return True


def test_our_checker_and_jsonschema_agree_on_what_is_wrong():
    whole = thinned()
    paths = [path for path in places(whole) if path[-1] not in ("name", "artifact")]  # our checker compares these
    chance = random.Random(0)
    refused = 0
    for path in chance.sample(paths, 120):
        changed = copy.deepcopy(whole)
        target = changed
        for key in path[:-1]:
            target = target[key]
        wrong = chance.choice([None, -1, 2, 0.5, "x", True, [], {}, "gone"])
        if wrong == "gone" and isinstance(target, dict):
            del target[path[-1]]
        else:
            target[path[-1]] = wrong
        valid = BARE.is_valid(changed)
        refused += not valid
        assert accepted(changed) == valid, f"{path} = {wrong!r}"
    assert 50 < refused < 120


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda audit: audit.update(schema=2), "schema is 2"),
        (lambda audit: audit.pop("findings"), "'findings' is missing; expected it as: what was found"),
        (lambda audit: audit["attacks"][0].update(goal="fame"), "expected one of clone, weights, width"),
        (lambda audit: audit["claims"][0]["rows"][0].update(verdict="safe"), "verdict is 'safe'"),
        (lambda audit: audit["artifacts"][0].update(name="model.onnx"), "of two names"),
        (lambda audit: audit["artifacts"][1].update(role="before"), "expected one 'after'"),
        (lambda audit: audit["artifacts"].pop(), "expected one 'after'"),
        (
            lambda audit: audit["attacks"][0]["victims"][0].update(artifact="other.onnx"),
            "Knockoff attacked 'other.onnx'",
        ),
        (lambda audit: audit["attacks"][3]["victims"][0]["auc"].update(value=float("nan")), r"auc\.value is nan"),
    ],
)
def test_wrong_audits_are_refused_and_the_reason_named(report, change, message):
    audit = full_audit()
    change(audit)
    with pytest.raises(StorageError, match=message):
        check_audit(audit)
    with pytest.raises(StorageError, match="audit"):
        check({**report, "audit": audit})


@pytest.mark.parametrize(
    "raw", [b"", b"\x00\xff", b"[]", b"null", b"[" * 100_000, b'{"schema": NaN}', b'{"schema": 1}']
)
def test_garbage_is_refused(tmp_path, raw):
    path = tmp_path / "audit.json"
    path.write_bytes(raw)
    with pytest.raises(StorageError, match=r"audit\.json"):
        load_audit(path)


def test_written_audits_are_read_back(tmp_path):
    write_audit(full_audit(), tmp_path / "new")
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["audit.html", "audit.json"]
    assert load_audit(tmp_path / "new" / "audit.json") == json.loads(json.dumps(full_audit()))


def test_an_audit_goes_into_the_report_beside_it(report, tmp_path):
    write_report(report, tmp_path)
    write_audit(full_audit(), tmp_path)
    stored = load_report(tmp_path / "report.json")
    assert stored.pop("audit") == load_audit(tmp_path / "audit.json")
    assert stored == json.loads(json.dumps(report))
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "How hard is it to steal?" in page
    assert 'href="audit.html"' in page


def test_nothing_is_written_where_the_audit_is_wrong(report, tmp_path):
    write_report(report, tmp_path)
    before = (tmp_path / "report.html").read_bytes()
    with pytest.raises(StorageError, match="'sentence' is missing"):
        write_audit({key: item for key, item in full_audit().items() if key != "sentence"}, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "report.json"]
    assert (tmp_path / "report.html").read_bytes() == before


def test_a_broken_report_beside_it_does_not_cost_the_audit(tmp_path):
    (tmp_path / "report.json").write_text("{", encoding="utf-8")
    with pytest.raises(StorageError, match=r"report\.json is not JSON"):
        write_audit(full_audit(), tmp_path)
    assert load_audit(tmp_path / "audit.json")["sentence"] == full_audit()["sentence"]


def test_the_verdict_of_a_report_ends_with_that_of_the_audit(report):
    alone = verdict(report)
    assert verdict({**report, "audit": None}) == alone
    assert verdict({**report, "audit": full_audit()}) == f"{alone} {full_audit()['sentence']}"


def by_name(audit):
    return {finding["finding"]: finding for finding in findings(audit)}


def test_findings_carry_the_ids_of_the_standards():
    ids = {
        name: [f"{reference['standard']} {reference['id']}" for reference in finding["ids"]]
        for name, finding in by_name(full_audit()).items()
    }
    atlas, top10, nist, aisvs = VERSIONS
    assert {atlas: "5.6.0", top10: "2023", nist: "e2025", aisvs: "1.0"} == VERSIONS
    assert ids == {
        "extraction by queries": [f"{atlas} AML.T0024.002", f"{top10} ML05:2023", f"{nist} NISTAML.031",
                                  f"{aisvs} 11.2.2", f"{aisvs} 11.3.1", f"{aisvs} 11.3.2"],
        "membership": [f"{atlas} AML.T0024.000", f"{top10} ML04:2023", f"{nist} NISTAML.033", f"{aisvs} 11.2.5"],
        "inversion": [f"{atlas} AML.T0024.001", f"{top10} ML03:2023", f"{nist} NISTAML.032"],
        "the file in hand": [f"{atlas} AML.T0044", f"{atlas} AML.T0035", f"{top10} ML05:2023", f"{aisvs} 4.3.4"],
        "copy used as a stepping stone": [f"{atlas} AML.T0005.001"],
        "harm": [f"{atlas} AML.T0048.004"],
    }  # fmt: skip
    assert "4.3.5" not in json.dumps(findings(full_audit()))


def test_advice_names_only_mitigations_of_atlas():
    named = {match for finding in findings(full_audit()) for match in re.findall(r"AML\.\w+", str(finding["advice"]))}
    assert named == {"AML.M0002", "AML.M0004", "AML.M0012"}


def test_findings_say_what_was_measured():
    found = by_name(full_audit())
    extraction = found["extraction by queries"]["sentence"]
    for wanted in ("4,000 answers", "the best of 3 attacks, ActiveThief,", "94.35 % (93.75 to 94.95 %)",
                   "without an answer reaches 83.35 %", "of original.onnx the copy reaches 94.10 %",
                   "LogitSubspace found 100 %"):  # fmt: skip
        assert wanted in extraction, wanted
    for wanted in ("The best of 2 attacks, LiRA,", "0.83 %", "0.1 % of the others", "in original.onnx: 1.58 %",
                   "AUC 0.574 (guessing 0.5, without any model 0.501)"):  # fmt: skip
        assert wanted in found["membership"]["sentence"], wanted
    assert "FileLeaks found 50.00 %" in found["the file in hand"]["sentence"]
    assert "its accuracy on the evaluation examples is 89.31 %" in found["harm"]["sentence"]


def test_findings_are_only_of_what_was_run():
    assert list(by_name(small_audit())) == ["extraction by queries", "copy used as a stepping stone", "harm"]
    assert findings({**full_audit(), "attacks": []}) == []


def test_the_verdict_of_a_finding_is_what_its_measures_share():
    audit = full_audit()
    assert by_name(audit)["membership"]["verdict"] == "harder"
    for without_vote in ("the file in hand", "inversion"):
        assert by_name(audit)[without_vote]["verdict"] == "not measured"
    audit["claims"][0]["rows"].append(row("Reconstructions", "inversion", "share", 0.1, 0.2, "easier"))
    assert by_name(audit)["inversion"]["verdict"] == "easier"


def test_a_rate_that_may_not_be_claimed_is_not_told():
    audit = full_audit()
    for attack in audit["attacks"]:
        for victim in attack["victims"]:
            for item in victim.get("tpr_at") or []:
                item["claimable"] = item["fpr"] >= 0.01
    told = by_name(audit)["membership"]["sentence"]
    assert "1 % of the others" in told
    assert "0.1 % of the others" not in told


def test_candidates_too_few_for_any_rate_are_said():
    audit = full_audit()
    for attack in audit["attacks"]:
        for victim in attack["victims"]:
            for item in victim.get("tpr_at") or []:
                item.update(claimable=False, tpr=None)
    check_audit(audit)
    assert (
        "too few candidates to speak of low false-positive rates; AUC 0.574" in by_name(audit)["membership"]["sentence"]
    )
