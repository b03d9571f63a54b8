"""What was measured, as plain data, and how it prints."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from nutlet.measurement.latency import Latency, Speedup
from nutlet.tables import Table, Tabled

__all__ = ["Figures", "FileFigures", "Measurement"]


@dataclass(frozen=True)
class Figures:
    """What is known of any model, a module in memory as well.

    Args:
        accuracy: top-1, 0 to 1.
        accuracy_low: lower end of its 95 % Wilson interval.
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
        agreement: share of examples on which both choose the same class; None without an original.
        agreement_low: lower end of its 95 % Wilson interval.
        agreement_high: upper end.
        accuracy_drop_pp: accuracy lost, in percentage points; negative where the file is better.
        accuracy_drop_pp_low: lower end of its 95 % interval, paired on the same examples.
        accuracy_drop_pp_high: upper end.
        speedups: how many times faster the file is, per setting, timed in turn in one run.
        split: which examples: ``test``, ``validation`` or ``given``.
        environment: machine and versions, see :func:`nutlet.measurement.environment`.
    """

    compressed: FileFigures
    original: Figures | None
    agreement: float | None
    agreement_low: float | None
    agreement_high: float | None
    accuracy_drop_pp: float | None
    accuracy_drop_pp_low: float | None
    accuracy_drop_pp_high: float | None
    speedups: tuple[Speedup, ...]
    split: str
    environment: dict[str, Any]

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
        return {**value, "size_ratio": self.size_ratio, "size_ratio_zstd": self.size_ratio_zstd}

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
            ("top-1 accuracy", _accuracy(new), _accuracy(old) if old else "", self._change_of_accuracy()),
        ]
        if self.agreement is not None and self.agreement_low is not None and self.agreement_high is not None:
            share = _percent(self.agreement, self.agreement_low, self.agreement_high)
            rows.append(("same top-1 as the original", share, "", ""))
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
        title = f"{new.path} in {new.runtime}, {new.examples:,} examples ({self.split})"
        return Table(title, columns, tuple(rows), (f"Brackets: 95 % interval.{self._verdict()}", self._machine()))

    def _change_of_accuracy(self) -> str:
        drop, low, high = self.accuracy_drop_pp, self.accuracy_drop_pp_low, self.accuracy_drop_pp_high
        if drop is None or low is None or high is None:
            return ""
        # 0 - x and not -x: no drop must not print as "-0.00".
        return f"{0 - drop:+.2f} pp [{0 - high:+.2f}, {0 - low:+.2f}]"

    def _verdict(self) -> str:
        low, high = self.accuracy_drop_pp_low, self.accuracy_drop_pp_high
        if low is None or high is None:
            return ""
        if low <= 0 <= high:
            return " The change of accuracy is not measurable with this many examples: its interval holds zero."
        return f" The compressed file is measurably {'less' if low > 0 else 'more'} accurate."

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


def _accuracy(figures: Figures) -> str:
    return _percent(figures.accuracy, figures.accuracy_low, figures.accuracy_high)


def _latency(latency: Latency) -> str:
    return f"{latency.median_ms:.3g} ms (p95 {latency.p95_ms:.3g})"


def _times(ratio: float | None, better: str) -> str:
    """Say "2.50x smaller"; below one the inverse would flatter nobody, so the bare factor stands."""
    if ratio is None:
        return ""
    return f"{ratio:.2f}x {better}" if ratio >= 1 else f"{ratio:.2f}x"


def _mib(value: float | None) -> str:
    return "not told by this system" if value is None else f"{value:.1f} MiB"
