r"""Made-up rivers, to see what a network makes of numbers at each step: rain and warmth in, discharge out.

Below freezing, rain becomes snow, which melts when it is warm again; what melts and what rains fills the soil, which
loses water to the air and to the river. All rivers follow the same equations, each in its own weather. What flows in
April was decided in December: a window of some days does not see it. Some gauges fail on some days.

    python benchmarks/discharge.py rivers.csv
    anyrnn compare rivers.csv --task tagging --causal --id river --time day --target discharge --metric nse \
        --cells lstm,gru --hidden 32 --batch-size 8 --epochs 40
"""

import csv
import sys

import numpy as np

RIVERS, DAYS, FAILING = 150, 730, 0.05


def river(draws: np.random.Generator) -> list[tuple[int, float, float, float]]:
    """Day, rain (mm), warmth (degrees Celsius), discharge (mm)."""
    snow, soil, rows = 0.0, 50.0, []
    mean, start = draws.normal(6, 2), draws.integers(365)
    for day in range(DAYS):
        warmth = mean + 12 * np.sin(2 * np.pi * (day + start) / 365) + draws.normal(0, 3)
        rain = draws.exponential(8) if draws.random() < 0.35 else 0.0
        falls = 1 / (1 + np.exp(-2 * warmth))  # the share of it that is no snow
        melts = min(snow, 3 * max(warmth, 0.0))
        snow += rain * (1 - falls) - melts
        soil += rain * falls + melts
        soil -= min(soil, 0.15 * max(warmth, 0.0) * min(1.0, soil / 60))
        flows = 0.03 * soil + 0.4 * max(soil - 90, 0.0)
        soil -= flows
        rows.append((day, rain, warmth, flows))
    return rows


def main() -> None:
    """Write the table."""
    draws = np.random.default_rng(0)
    with open(sys.argv[1], "w", newline="", encoding="utf-8") as file:  # noqa: PTH123
        table = csv.writer(file)
        table.writerow(("river", "day", "rain", "warmth", "discharge"))
        for k in range(RIVERS):
            for day, rain, warmth, flows in river(draws):
                gauge = "" if draws.random() < FAILING else f"{flows:.3f}"
                table.writerow((f"river{k:03}", day, f"{rain:.1f}", f"{warmth:.1f}", gauge))


if __name__ == "__main__":
    main()
