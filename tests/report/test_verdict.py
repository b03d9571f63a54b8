"""The sentence on top: as plain about a loss as about a gain."""

import pytest

from nutlet.report import verdict


def file(size=1000, accuracy=0.9, ms=1.0, **more):
    latency = [{"batch": 1, "threads": 1, "median_ms": ms}, {"batch": 32, "threads": 1, "median_ms": 20 * ms}]
    ends = {"accuracy_low": accuracy - 0.006, "accuracy_high": accuracy + 0.006, "examples": 10000}
    return {"bytes": size, "bytes_zstd": size, "accuracy": accuracy, "latency": latency, **ends, **more}


def say(original, compressed, **more):
    """Give both files and the paired interval between them, 1.2 points to each side unless another is named."""
    if original and compressed["accuracy"] is not None:
        drop = 100 * (original["accuracy"] - compressed["accuracy"])
        more = {"accuracy_drop_pp_low": drop - 1.2, "accuracy_drop_pp_high": drop + 1.2, **more}
    return verdict({"measurement": {"original": original, "compressed": compressed, **more}})


def test_better():
    assert say(file(), file(200, 0.93, 0.25)) == (
        "5.0x smaller, 4.0x faster at batch 1, 3.0 points more accurate (95 % interval 1.8 to 4.2)."
    )


def test_worse_in_everything_is_said_plainly():
    assert say(file(), file(1500, 0.8, 2.0)) == (
        "1.5x bigger, 2.0x slower at batch 1, 10.0 points less accurate (95 % interval 8.8 to 11.2). "
        "Also 2.0x slower at batch 32 with 1 thread."
    )


def test_speed_goes_by_the_rounds_in_which_both_were_timed():
    def rounds(low, high):
        return [{"batch": batch, "threads": 1, "ratio": 0.9, "low": low, "high": high} for batch in (1, 32)]

    # The medians say 2.0x slower: taken one after the other, on a busy machine.
    assert "1.1x slower at batch 1" in say(file(), file(200, ms=2.0), speedups=rounds(0.85, 0.95))
    unclear = say(file(), file(200, ms=2.0), speedups=rounds(0.5, 1.4))
    assert "no faster at batch 1" in unclear
    assert "slower" not in unclear


def test_an_interval_that_holds_zero_shows_no_loss():
    assert "no measurable loss of accuracy (-0.4 points, 95 % interval -1.6 to +0.8)" in say(
        file(), file(accuracy=0.896)
    )


def test_a_narrow_paired_interval_finds_a_small_loss():
    paired = {"accuracy_drop_pp_low": 0.2, "accuracy_drop_pp_high": 0.6}
    assert "0.4 points less accurate (95 % interval 0.2 to 0.6)" in say(file(), file(accuracy=0.896), **paired)


def test_without_a_paired_interval_accuracy_is_not_compared():
    assert "accuracy not compared" in say(file(), file(), accuracy_drop_pp_low=None, accuracy_drop_pp_high=None)


def test_equal_accuracy_and_a_gain_within_the_interval():
    assert "no measurable loss of accuracy (0.0 points" in say(file(), file())
    assert "no measurable change of accuracy (+0.2 points" in say(file(), file(accuracy=0.902))


def test_same_size_and_speed_are_not_called_gains():
    text = say(file(), file(995, ms=0.97, bytes_zstd=250))
    assert text.startswith("No smaller, no faster at batch 1, no measurable loss")
    assert "Only after zstd is it smaller, by 4.0x." in text


def test_faster_alone_but_slower_in_batches():
    slow = file(200, ms=0.5)
    slow["latency"][1]["median_ms"] = 30.0
    assert "2.0x faster at batch 1" in say(file(), slow)
    assert "But 1.5x slower at batch 32 with 1 thread." in say(file(), slow)


def test_few_examples_cannot_rule_a_loss_out():
    paired = {"accuracy_drop_pp_low": -16, "accuracy_drop_pp_high": 16}
    assert "a loss of up to 16.0 points cannot be ruled out" in say(file(), file(), **paired)


def test_no_original_and_nothing_at_all():
    text = say(None, file())
    assert text.startswith("A file of 1.00 kB, 90.00 % accurate")
    assert "nothing is compared" in text
    assert "no shipped file" in verdict({"measurement": None})


def test_original_in_memory_has_accuracy_alone():
    module = {"accuracy": 0.9, "accuracy_low": 0.89, "accuracy_high": 0.91, "examples": 100}
    assert say(module, file()).startswith("Size not compared, speed not compared, no measurable loss")


@pytest.mark.parametrize("missing", ["bytes", "accuracy", "latency"])
def test_absent_figures_are_said(missing):
    text = say(file(), {**file(), missing: None}).lower()
    assert {"bytes": "size not compared", "accuracy": "accuracy not compared", "latency": "speed not measured"}[
        missing
    ] in text
