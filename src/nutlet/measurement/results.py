"""What was measured, as plain data, and how it prints."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from nutlet.findings import Finding
from nutlet.measurement.goal import Judged, goal_sentence, plain
from nutlet.measurement.latency import Latency, Speedup
from nutlet.measurement.rows import row_of
from nutlet.rounding import points, times
from nutlet.tables import Table, Tabled
from nutlet.tasks import Task

__all__ = ["ACCURACY", "Figures", "FileFigures", "Measurement", "Metric"]


@dataclass(frozen=True)
class Metric:
    """What the scores of a measurement are, see :class:`~nutlet.Task`.

    Args:
        task: name of the task.
        metric: what the mean score is called.
        unit: ``%`` for shares, or what the metric counts.
        higher_is_better: whether the metric is the mean score, or minus that.
    """

    task: str = "classification"
    metric: str = "top-1 accuracy"
    unit: str = "%"
    higher_is_better: bool = True

    @staticmethod
    def of(task: Task) -> Metric:
        """Take what is to be shown of a task."""
        return Metric(task.name, task.metric, task.unit, task.higher_is_better)

    @property
    def name(self) -> str:
        """The metric in a sentence; of classes plainly accuracy."""
        return "accuracy" if self.task == "classification" else self.metric

    def text(self, score: float, digits: int = 1) -> str:
        """Return a mean score as the metric, with its unit."""
        if self.unit == "%":
            return f"{score:.{digits}%}"
        return f"{0.0 + (score if self.higher_is_better else -score):.{digits + 3}g} {self.unit}".rstrip()

    def amount(self, lost: float) -> str:
        """Return how much of the metric a lost mean score is."""
        return f"{100 * lost:.1f} points" if self.unit == "%" else f"{abs(lost):.3g} {self.unit}".rstrip()

    def signed(self, gained: float) -> str:
        """Return the change of the metric where the mean score rises by ``gained``, without a unit."""
        if self.unit == "%":
            return f"{100 * gained:+.2f}"
        return f"{gained if self.higher_is_better else 0 - gained:+.4g}"

    def interval(self, value: float, low: float, high: float) -> str:
        """Return a mean score and its interval as the metric."""
        if self.unit == "%":
            return _percent(value, low, high)
        ends = (value, low, high) if self.higher_is_better else (-value, -high, -low)
        return "{:.4g} {unit} [{:.4g}, {:.4g}]".format(*(0.0 + end for end in ends), unit=self.unit).replace("  ", " ")

    def change(self, drop: float, low: float, high: float) -> str:
        """Return the change of the metric that a drop of the mean score is."""
        # 0 - x and not -x: no drop must not print as "-0.0".
        if self.unit == "%":
            value, least, most = (points(0 - end, sign=True) for end in (drop, high, low))
            return f"{value} points [{least}, {most}]"
        ends = (0 - drop, 0 - high, 0 - low) if self.higher_is_better else (drop, low, high)
        return "{:+.4g} {unit} [{:+.4g}, {:+.4g}]".format(*ends, unit=self.unit).replace("  ", " ")


ACCURACY = Metric()
"""That of classification."""


@dataclass(frozen=True)
class Figures:
    """What is known of any model, a module in memory as well.

    Args:
        accuracy: mean score of the task, see :class:`Metric`: top-1, 0 to 1, in classification.
        accuracy_low: lower end of its 95 % interval (Wilson for shares, t and bootstrap otherwise).
        accuracy_high: upper end.
        examples: number of examples behind it.
    """

    accuracy: float
    accuracy_low: float
    accuracy_high: float
    examples: int


@dataclass(frozen=True)
class FileFigures(Figures):
    """What is known of a shipped file, beside :class:`Figures`.

    Args:
        path: name of the file, without its folder.
        runtime: name and version of what ran it.
        bytes: bytes on disk.
        bytes_zstd: bytes after zstd at level 19, as a download or an update would be packed.
        latency: one entry per batch size and number of threads.
        peak_memory_mib: MiB which loading and running the file added to a bare process; None: not told here.
        peak_process_mib: MiB of that whole process.
    """

    path: str
    runtime: str
    bytes: int
    bytes_zstd: int
    latency: tuple[Latency, ...]
    peak_memory_mib: float | None
    peak_process_mib: float | None


@dataclass(frozen=True)
class Measurement(Tabled):
    """A shipped file in its runtime, beside the original where one was given.

    Args:
        compressed: figures of the file.
        original: figures of the original: a file, a module in memory (accuracy alone), or None.
        agreement: mean agreement of the task, 0 to 1, of classes the share of examples on which both choose the same;
            None without an original.
        agreement_low: lower end of its 95 % interval.
        agreement_high: upper end.
        score_drop: mean score lost, in units of the score; negative where the file is better.
        score_drop_low: lower end of its 95 % interval, paired on the same examples.
        score_drop_high: upper end.
        speedups: how many times faster the file is, per setting, timed in turn in one run.
        split: which examples: ``test``, ``validation`` or ``given``.
        environment: machine and versions, see :func:`nutlet.measurement.environment`.
        task: what the scores are.
        goal: what was asked for, each part with its verdict; empty where nothing was.
        findings: what is probably wrong with how the original, or the only file, is used.
    """

    compressed: FileFigures
    original: Figures | None
    agreement: float | None
    agreement_low: float | None
    agreement_high: float | None
    score_drop: float | None
    score_drop_low: float | None
    score_drop_high: float | None
    speedups: tuple[Speedup, ...]
    split: str
    environment: dict[str, Any]
    task: Metric = ACCURACY
    goal: tuple[Judged, ...] = ()
    findings: tuple[Finding, ...] = ()

    @property
    def accuracy_drop_pp(self) -> float | None:
        """Accuracy lost, in percentage points; None without an original, and where scores are no shares."""
        return self._points(self.score_drop)

    @property
    def accuracy_drop_pp_low(self) -> float | None:
        """Lower end of its interval."""
        return self._points(self.score_drop_low)

    @property
    def accuracy_drop_pp_high(self) -> float | None:
        """Upper end of its interval."""
        return self._points(self.score_drop_high)

    def _points(self, drop: float | None) -> float | None:
        return None if drop is None or self.task.unit != "%" else 100 * drop

    @property
    def size_ratio(self) -> float | None:
        """Bytes of the original file over bytes of the file; None without an original file."""
        return self.original.bytes / self.compressed.bytes if isinstance(self.original, FileFigures) else None

    @property
    def size_ratio_zstd(self) -> float | None:
        """The same after zstd."""
        if not isinstance(self.original, FileFigures):
            return None
        return self.original.bytes_zstd / self.compressed.bytes_zstd

    def speedup(self, batch: int, threads: int) -> float | None:
        """Return original median over compressed median in one setting, or None where it was not timed.

        Args:
            batch: examples per call.
            threads: true number of threads, as in :class:`Latency`.
        """
        return next((s.ratio for s in self.speedups if (s.batch, s.threads) == (batch, threads)), None)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON, the derived figures included."""
        value: dict[str, Any] = _plain(asdict(self))
        names = ("accuracy_drop_pp", "accuracy_drop_pp_low", "accuracy_drop_pp_high", "size_ratio", "size_ratio_zstd")
        return {**value, "goal": plain(self.goal), **{name: getattr(self, name) for name in names}}

    def to_row(self) -> dict[str, Any]:
        """Return the figures as one flat row, for a data frame: bytes, score, loss, and speed in each setting.

        >>> file = FileFigures(0.9, 0.8, 0.95, 100, "model.onnx", "a runtime", 10, 9, (), None, None)
        >>> alone = Measurement(file, None, None, None, None, None, None, None, (), "test", {})
        >>> alone.to_row()["bytes"], alone.to_row()["loss"]
        (10, None)
        """
        return row_of(self.to_dict())

    def table(self) -> Table:
        """Return the figures as rows, the one source of all printed forms."""
        old = self.original
        file = old if isinstance(old, FileFigures) else None
        new = self.compressed
        rows: list[tuple[str, ...]] = [
            ("file", new.path, file.path if file else "module in memory", ""),
            ("bytes", f"{new.bytes:,}", f"{file.bytes:,}" if file else "", _times(self.size_ratio, "smaller")),
            (
                "bytes after zstd",
                f"{new.bytes_zstd:,}",
                f"{file.bytes_zstd:,}" if file else "",
                _times(self.size_ratio_zstd, "smaller"),
            ),
            (self.task.metric, self._score(new), self._score(old) if old else "", self._change()),
        ]
        if self.agreement is not None and self.agreement_low is not None and self.agreement_high is not None:
            share = _percent(self.agreement, self.agreement_low, self.agreement_high)
            same = "same top-1 as the original" if self.task.task == "classification" else "agreement with the original"
            rows.append((same, share, "", ""))
        for place, latency in enumerate(new.latency):
            threads = f"{latency.threads} thread{'s' if latency.threads > 1 else ''}"
            before = _latency(file.latency[place]) if file else ""
            ratio = _times(self.speedup(latency.batch, latency.threads), "faster")
            rows.append((f"batch {latency.batch}, {threads}", _latency(latency), before, ratio))
        before = _mib(file.peak_memory_mib) if file else ""
        rows.append(("peak memory added by the file", _mib(new.peak_memory_mib), before, ""))
        columns: tuple[str, ...] = ("", "compressed", "original", "change")
        if old is None:
            columns, rows = columns[:2], [row[:2] for row in rows]
        warnings = [f"WARNING: {finding}" for finding in self.findings]
        title = f"{new.path} in {new.runtime}, {new.examples:,} examples ({self.split})"
        brackets = f"Brackets: 95 % interval.{self._verdict()}"
        notes = (*warnings, brackets, self._machine(), goal_sentence(self.goal))
        return Table(title, columns, tuple(rows), tuple(filter(None, notes)))

    def _score(self, figures: Figures) -> str:
        return self.task.interval(figures.accuracy, figures.accuracy_low, figures.accuracy_high)

    def _change(self) -> str:
        drop, low, high = self.score_drop, self.score_drop_low, self.score_drop_high
        return "" if drop is None or low is None or high is None else self.task.change(drop, low, high)

    def _verdict(self) -> str:
        low, high = self.score_drop_low, self.score_drop_high
        if low is None or high is None:
            return ""
        classes = self.task.task == "classification"
        if low <= 0 <= high:
            what = "accuracy" if classes else self.task.metric
            return f" The change of {what} is not measurable with this many examples: its interval holds zero."
        if classes:
            return f" The compressed file is measurably {'less' if low > 0 else 'more'} accurate."
        return f" The compressed file is measurably {'worse' if low > 0 else 'better'} in {self.task.metric}."

    def _machine(self) -> str:
        here = self.environment
        fast = here["int8_dot_product"]
        if fast is None:
            said = "instruction sets not known"
        elif fast:
            said = f"int8 dot product ({', '.join(here['instruction_sets'])})"
        else:
            said = "no int8 dot product (VNNI): int8 gains less here than on a CPU that has it"
        return f"{here['cpu']}, {here['cores']} cores, {said}; {self.compressed.runtime}."


def _plain(value: Any) -> Any:
    """Turn tuples into lists, as JSON would."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def _percent(value: float, low: float, high: float) -> str:
    return f"{100 * value:.2f} % [{100 * low:.2f}, {100 * high:.2f}]"


def _latency(latency: Latency) -> str:
    return f"{latency.median_ms:.3g} ms (p95 {latency.p95_ms:.3g})"


def _times(ratio: float | None, better: str) -> str:
    """Say "2.5x smaller"; below one the inverse would flatter nobody, so the bare factor stands."""
    if ratio is None:
        return ""
    return f"{times(ratio)} {better}" if ratio >= 1 else times(ratio)


def _mib(value: float | None) -> str:
    return "not told by this system" if value is None else f"{value:.1f} MiB"
