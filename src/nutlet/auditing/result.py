"""The result of an audit: plain data that print well."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from nutlet.tables import Table, Tabled
from nutlet.verdicts import Verdict

__all__ = ["Audit"]


@dataclass(frozen=True, eq=False)
class Audit(Tabled):
    """What an audit found; ``value`` is the content of ``audit.json``.

    Args:
        value: plain JSON, described by the schema of the report.
    """

    value: dict[str, Any]

    @property
    def sentence(self) -> str:
        """The verdict in one sentence."""
        return str(self.value["sentence"])

    def verdicts(self) -> dict[str, Verdict]:
        """Return the verdict of each measure."""
        return {row["measure"]: Verdict(row["verdict"]) for claim in self.value["claims"] for row in claim["rows"]}

    @property
    def faults(self) -> tuple[str, ...]:
        """What the attacks whose own code failed ended with, one sentence each."""
        return tuple(
            f"{record['name']} {record['reason']}"
            for record in self.value["attacks"]
            if record["error"] and record["error"]["fault"]
        )

    def attack(self, name: str) -> dict[str, Any]:
        """Return the record of one attack.

        Raises:
            KeyError: there is none of that name.
        """
        for record in self.value["attacks"]:
            if record["name"] == name:
                return dict(record)
        raise KeyError(name)

    def not_run(self) -> dict[str, list[str]]:
        """Return the attacks that were not run, by the reason."""
        reasons: dict[str, list[str]] = {}
        for record in self.value["attacks"]:
            if record["status"] == "not run":
                reasons.setdefault(record["reason"], []).append(record["name"])
        return reasons

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON."""
        return self.value

    def table(self) -> Table:
        """Return the three claims as a table."""
        rows = []
        for claim in self.value["claims"]:
            for row in claim["rows"]:
                cells = (_figure(row["before"], row["unit"]), _figure(row["after"], row["unit"]))
                rows.append((f"{claim['claim']}: {row['measure']}", *cells, _gap(row), _told(row)))
        columns = ("measure", "before", "after", "difference [95 %]", "theft became")
        missing = [f"Not run: {', '.join(names)}: {reason}." for reason, names in self.not_run().items()]
        notes = (self.sentence, *self.value["warnings"], *missing)
        return Table(f"How hard is {self.value['artifacts'][-1]['name']} to steal?", columns, tuple(rows), notes)


_COUNTED = ("bytes", "count", "queries")


def _told(row: dict[str, Any]) -> str:
    """Return the verdict of a row that has one, else what is to be known of it."""
    if row["verdict"] in (Verdict.NO_VOTE, Verdict.NOT_MEASURED):
        return str(row["note"])
    return str(row["verdict"])


def _figure(value: float | None, unit: str) -> str:
    if value is None:
        return "–"
    if unit in _COUNTED:
        return f"{value:,.0f}"
    return f"{100 * value:.2f} %" if unit == "share" else f"{value:.4g} {unit}".strip()


def _gap(row: dict[str, Any]) -> str:
    gap = row["difference"]
    if gap is None:
        return ""
    if row["unit"] == "share":
        return f"{100 * gap['value']:+.2f} pp [{100 * gap['low']:+.2f}, {100 * gap['high']:+.2f}]"
    if row["unit"] in _COUNTED:
        return f"{gap['value']:+,.0f}"
    return f"{gap['value']:+.3g} [{gap['low']:+.3g}, {gap['high']:+.3g}] {row['unit']}".strip()
