"""Numbers in charts and beside each other: round, few digits, written alike."""

import pytest

from anyrnn.workbench import charts
from anyrnn.workbench.inspect import alike


@pytest.mark.parametrize(
    "axis, texts",
    [
        (charts.Axis(0, 1, 0, 100), ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]),
        (charts.Axis(-0.1, 0.1, 0, 100), ["-0.10", "-0.05", "0.00", "0.05", "0.10"]),
        (charts.Axis(0.962, 0.985, 0, 100, percent=True), ["96.5 %", "97.0 %", "97.5 %", "98.0 %", "98.5 %"]),
        (charts.Axis(0, 7000, 0, 100), ["0", "1,000", "2,000", "3,000", "4,000", "5,000", "6,000", "7,000"]),
        (charts.Axis(0, 2e-9, 0, 100), ["0", "5e-10", "1e-09", "1.5e-09", "2e-09"]),
        (charts.Axis(0.0008, 2.3, 0, 100, log=True), ["0.001", "0.003", "0.01", "0.03", "0.1", "0.3", "1"]),
        (charts.Axis(1e-12, 1e3, 0, 100, log=True), ["1e-12", "1e-09", "1e-06", "0.001", "1", "1e+03"]),
        (charts.Axis(0.91, 0.99, 0, 100, log=True), ["0.92", "0.94", "0.96", "0.98"]),
    ],
)
def test_ticks_are_round_inside_the_range_and_written_alike(axis: charts.Axis, texts: list[str]) -> None:
    ticks = axis.ticks(5)
    assert [text.replace("\N{NO-BREAK SPACE}", " ") for _, text in ticks] == texts
    assert all(-1e-9 <= axis(value) <= 100 + 1e-9 for value, _ in ticks)


@pytest.mark.parametrize(
    ("values", "texts"),
    [
        ((112.0, 108.657), ("112.00", "108.66")),
        ((112.0, 1.25), ("112.0", "1.2")),
        ((0.05, -0.0123456), ("0.05000", "-0.01235")),
        ((1767225600.5, 1767225601.0), ("1767225600.500", "1767225601.000")),
        ((0.0, 0.0), ("0", "0")),
        ((1e-30, 2e-30), ("1e-30", "2e-30")),
        ((5.0, 5.0), ("5.000", "5.000")),
    ],
)
def test_numbers_that_are_compared_are_written_alike(values: tuple[float, ...], texts: tuple[str, ...]) -> None:
    assert alike(*values) == texts
