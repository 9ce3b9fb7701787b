"""Values as Grafana writes them."""

import math


def number(value, decimals=None):
    """Returns a number with about three digits, or with that many decimals."""
    if decimals is None:
        size = abs(value)
        decimals = 0 if size >= 100 or value == int(value) else 1 if size >= 10 else 2
        return f"{value:.{decimals}f}".rstrip("0").rstrip(".") if decimals else f"{value:.0f}"
    return f"{value:.{decimals}f}"


def shown(value, unit, decimals=None):
    """Returns a value with its unit. The units are those that the dashboards use."""
    match unit:
        case "s":
            for size, name in ((86400, "day"), (3600, "hour"), (60, "min")):
                if abs(value) >= size:
                    return f"{number(value / size, decimals)} {name}"
            if value == 0 or abs(value) >= 1:
                return f"{number(value, decimals)} s"
            return f"{number(value * 1000, decimals)} ms"
        case "percentunit":
            return f"{number(value * 100, decimals)}%"
        case "bytes":
            return f"{number(value / 2**20, decimals)} MiB"
        case "none" | "short":
            return number(value, decimals)
        case _ if unit.startswith("suffix:"):
            return number(value, decimals) + unit.removeprefix("suffix:")
        case _:
            raise ValueError(f"the unit {unit} is unknown")


def ticks(low, high, count, unit):
    """Returns about `count` round values from `low` to at least `high`."""
    span = (high - low) or 1
    # Times above a minute are divided by sixties.
    sixties = [15, 30, 60, 120, 300, 600] if unit == "s" and span > 40 else []
    power = 10 ** math.floor(math.log10(span / count))
    steps = sixties or [power * factor for factor in (1, 2, 2.5, 5, 10)]
    step = next((step for step in steps if span / step <= count), steps[-1])
    first = math.floor(low / step)
    last = math.ceil(high / step - 1e-9)
    return [index * step for index in range(first, max(last, first + 1) + 1)]
