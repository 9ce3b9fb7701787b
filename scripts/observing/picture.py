"""The overview dashboard as an SVG, drawn from its JSON and Prometheus' answers."""

import html
import math
import re
import time

from . import dashboards
from .live import WINDOW
from .units import shown, ticks

COLUMN, ROW, GAP, TOP = 41, 34, 8, 46
WIDTH = 24 * COLUMN + 2 * GAP
POINTS = 240  # of each series
PALETTE = ["#73BF69", "#F2CC0C", "#5794F2", "#FF9830", "#F2495C", "#B877D9", "#8AB8FF", "#CA95E5", "#96D98D", "#FFB357"]
NAMED = {
    "green": "#73BF69",
    "yellow": "#F2CC0C",
    "blue": "#5794F2",
    "orange": "#FF9830",
    "red": "#F2495C",
    "purple": "#B877D9",
}
STYLE = """
text { font: 11px Inter, "Segoe UI", Helvetica, Arial, sans-serif; fill: #9fa7b3 }
.board { font-size: 17px; font-weight: 600; fill: #e6e8eb }
.title { font-size: 12px; font-weight: 600; fill: #d5d8dc }
.value { font-weight: 600; text-anchor: middle }
.panel { fill: #181b1f; stroke: #2a2d33 }
.grid { stroke: #2c3037; stroke-width: 1 }
.line { fill: none; stroke-width: 1.4; stroke-linejoin: round }
.end { text-anchor: end } .mid { text-anchor: middle }
"""


def draw(monitoring, start, end, path):
    """Draws the overview dashboard between two times, in seconds since 1970, into `path`."""
    board = dashboards.load()["overview.json"]
    step = max(1, math.ceil((end - start) / POINTS))
    start = math.floor(start / step) * step
    bottom = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in board["panels"])
    height = TOP + bottom * ROW + GAP
    day, clock = time.strftime("%d %B %Y", time.gmtime(start)).lstrip("0"), "%H:%M"
    span = f"{day}, {time.strftime(clock, time.gmtime(start))} to {time.strftime(clock, time.gmtime(end))} UTC"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{board["title"]}">',
        f"<style>{STYLE}</style>",
        f'<rect width="{WIDTH}" height="{height}" rx="6" fill="#111217"/>',
        _text(GAP + 10, 30, board["title"], "board"),
        _text(WIDTH - GAP - 10, 30, span, "end"),
    ]
    for panel in board["panels"]:
        series = []
        for target in panel["targets"]:
            expression = dashboards.filled(target["expr"], WINDOW)
            for labels, points in monitoring.query_range(expression, start, end, step):
                name = re.sub(r"{{(\w+)}}", lambda match, labels=labels: labels[match[1]], target["legendFormat"])
                series.append(
                    (name, {round((at - start) / step): value for at, value in points if math.isfinite(value)})
                )
        parts += _Panel(panel, series, start, end, step).draw()
    path.write_text("\n".join([*parts, "</svg>"]) + "\n")


def _text(x, y, text, kind="", style=""):
    attributes = (f' class="{kind}"' if kind else "") + (f' style="{style}"' if style else "")
    return f'<text x="{x:.1f}" y="{y:.1f}"{attributes}>{html.escape(text)}</text>'


def _width(text):
    """About the width of a text of 11 px."""
    return sum(3.2 if letter in "il.,:/' " else 8.6 if letter in "mw%MW" else 6.1 for letter in text)


def _fitting(title, room):
    """A title of 12 px, cut where it would leave its panel."""
    if 1.2 * _width(title) <= room:
        return title
    while 1.2 * _width(title + "…") > room:
        title = title[:-1]
    return title + "…"


def _bends(run, *lines):
    """The indexes of a run without those between two at which all lines have the same values."""
    level = [tuple(line[index] for line in lines if line) for index in run]
    inner = range(1, len(run) - 1)
    return [run[0], *(run[at] for at in inner if level[at - 1 : at + 2] != [level[at]] * 3), *run[1:][-1:]]


class _Panel:
    def __init__(self, panel, series, start, end, step):
        self.panel, self.series, self.start, self.end, self.step = panel, series, start, end, step
        self.defaults = panel["fieldConfig"]["defaults"]
        self.custom = self.defaults.get("custom", {})
        at = panel["gridPos"]
        self.x, self.y = GAP + at["x"] * COLUMN + GAP / 2, TOP + at["y"] * ROW + GAP / 2
        self.w, self.h = at["w"] * COLUMN - GAP, at["h"] * ROW - GAP

    def draw(self):
        yield f'<rect class="panel" x="{self.x:.1f}" y="{self.y:.1f}" width="{self.w:.1f}" height="{self.h:.1f}" rx="3"/>'
        yield _text(self.x + 10, self.y + 18, _fitting(self.panel["title"], self.w - 20), "title")
        if not self.series:
            yield _text(self.x + self.w / 2, self.y + self.h / 2 + 8, "No data", "mid")
        elif self.panel["type"] == "stat":
            yield from self._stat()
        else:
            yield from self._lines()

    def _shown(self, value):
        return shown(value, self.defaults["unit"], self.defaults.get("decimals"))

    def _threshold(self, value):
        passed = [
            one["color"]
            for one in self.defaults["thresholds"]["steps"]
            if one["value"] is None or value >= one["value"]
        ]
        return NAMED[passed[-1]]

    def _stat(self):
        (_, points), *_ = self.series
        if not points:
            return
        value = points[max(points)]
        color = self._threshold(value)
        low, high = min(0, *points.values()), max(points.values())
        self._scale(low, high, self.x + 1, self.x + self.w - 1, self.y + self.h - 34, self.y + self.h - 2)
        yield from self._curve(points, color, 0.18)
        yield _text(self.x + self.w / 2, self.y + 66, self._shown(value), "value", f"font-size:27px;fill:{color}")

    def _scale(self, low, high, left, right, top, bottom):
        count = (self.end - self.start) / self.step
        self._x = lambda index: left + (right - left) * index / count
        self._y = lambda value: bottom - (bottom - top) * (value - low) / ((high - low) or 1)
        self._base = bottom

    def _curve(self, points, color, fill, dash="", below=None):
        """A line through the points, interrupted where one is missing, and the area down to `below`."""
        runs, last = [], None
        for index in sorted(points):
            if last is None or index - last > 2:
                runs.append([])
            runs[-1].append(index)
            last = index
        for run in runs:
            run = _bends(run, points, below)
            line = [f"{self._x(index):.1f},{self._y(points[index]):.1f}" for index in run]
            if fill:
                floor = [(index, self._y(below[index]) if below else self._base) for index in reversed(run)]
                area = line + [f"{self._x(index):.1f},{y:.1f}" for index, y in floor]
                yield f'<polygon points="{" ".join(area)}" fill="{color}" fill-opacity="{fill}"/>'
            yield f'<polyline class="line" points="{" ".join(line)}" stroke="{color}"{dash}/>'

    def _look(self, name, number):
        """The color of a series, the opacity of its area, and whether it is dashed."""
        color, fill, dash = PALETTE[number % len(PALETTE)], self.custom.get("fillOpacity", 0) / 100, ""
        for override in self.panel["fieldConfig"]["overrides"]:
            if override["matcher"]["options"] == name:
                for one in override["properties"]:
                    match one["id"]:
                        case "color":
                            color = NAMED[one["value"]["fixedColor"]]
                        case "custom.fillOpacity":
                            fill = one["value"] / 100
                        case "custom.lineStyle":
                            dash = ' stroke-dasharray="6 5"'
        return color, fill, dash

    def _lines(self):
        looks = [self._look(name, number) for number, (name, _) in enumerate(self.series)]
        stacked, floors = self._stacked()
        legend, rows = self._legend(looks)
        values = [value for _, points in stacked for value in points.values()]
        low = self.defaults.get("min", min(values))
        high = self.defaults.get("max", max([*values, self.custom.get("axisSoftMax", low)]))
        marks = ticks(low, high, 4, self.defaults["unit"])
        left = self.x + 16 + max(_width(self._shown(mark)) for mark in marks)
        right, bottom = self.x + self.w - 14, self.y + self.h - 26 - 16 * rows
        self._scale(marks[0], marks[-1], left, right, self.y + 32, bottom)
        for mark in marks:
            yield f'<line class="grid" x1="{left:.1f}" x2="{right:.1f}" y1="{self._y(mark):.1f}" y2="{self._y(mark):.1f}"/>'
            yield _text(left - 6, self._y(mark) + 4, self._shown(mark), "end")
        yield from self._times(left, right, bottom)
        if "thresholdsStyle" in self.custom:
            for one in self.defaults["thresholds"]["steps"]:
                if one["value"] is not None and one["value"] <= marks[-1]:
                    y = self._y(one["value"])
                    color = NAMED[one["color"]]
                    yield f'<line x1="{left:.1f}" x2="{right:.1f}" y1="{y:.1f}" y2="{y:.1f}" stroke="{color}" stroke-dasharray="6 4"/>'
        for (_, points), floor, (color, fill, dash) in zip(stacked, floors, looks):
            yield from self._curve(points, color, fill, dash, floor)
        yield from legend

    def _stacked(self):
        """The series, and what each stands on."""
        if "stacking" not in self.custom:
            return self.series, [None] * len(self.series)
        indexes = set().union(*(points for _, points in self.series))
        floor, stacked, floors = dict.fromkeys(indexes, 0.0), [], []
        for name, points in self.series:
            floors.append(floor)
            floor = {index: floor[index] + points.get(index, 0.0) for index in indexes}
            stacked.append((name, floor))
        return stacked, floors

    def _times(self, left, right, bottom):
        gap = next(
            gap
            for gap in (15, 30, 60, 120, 300, 600, 1800, 3600)
            if (self.end - self.start) / gap <= (right - left) / 60
        )
        for at in range(math.ceil(self.start / gap) * gap, int(self.end), gap):
            x = self._x((at - self.start) / self.step)
            if left + 12 < x < right - 12:
                yield f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{self.y + 32:.1f}" y2="{bottom:.1f}"/>'
                clock = "%H:%M:%S" if gap < 60 else "%H:%M"
                yield _text(x, bottom + 16, time.strftime(clock, time.gmtime(at)), "mid")

    def _legend(self, looks):
        """The legend's elements, and how many rows it has."""
        rows, room = [[]], self.w - 20
        for (name, _), (color, _, _) in zip(self.series, looks):
            wide = 30 + _width(name)
            if rows[-1] and sum(width for _, _, width in rows[-1]) + wide > room:
                rows.append([])
            rows[-1].append((name, color, wide))
        elements = []
        for number, row in enumerate(rows):
            x, y = self.x + 12, self.y + self.h - 10 - 16 * (len(rows) - 1 - number)
            for name, color, wide in row:
                elements.append(f'<rect x="{x:.1f}" y="{y - 5:.1f}" width="12" height="3" rx="1" fill="{color}"/>')
                elements.append(_text(x + 17, y, name))
                x += wide
        return elements, len(rows)
