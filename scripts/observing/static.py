"""Checks of the dashboards and alerts that need nothing but the files."""

import json
import re

import yaml

from . import dashboards, runbook
from .catalogue import ROOT, TARGET_LABELS, documented
from .promql import parse

RULES = "deploy/prometheus/alerts.yml"
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}  # the one that is chosen


def alert_rules():
    """Returns the rules of alerts.yml."""
    groups = yaml.safe_load((ROOT / RULES).read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def problems():
    """Returns what is wrong, a line each."""
    metrics = documented()
    series = {name: labels for metric in metrics for name, labels in metric.series().items()}
    shared = {metric.name for metric in metrics if metric.is_shared}
    boards, titles = dashboards.load(), runbook.sections()
    found = [*_layout(boards), *_files(boards), *_links(boards, titles)]

    used = set()
    of_job = ("job", "Equal", "redial")
    expressions = [
        (query.place, query.expression("1m"), query.target["legendFormat"], of_job)
        for query in dashboards.queries(boards)
    ]
    expressions += [(f"{RULES}: {rule['alert']}", rule["expr"], "", None) for rule in alert_rules()]
    for place, expression, legend, required in expressions:
        try:
            selectors, grouping = parse(expression)
        except ValueError as error:
            found.append(f"{place}: {error}: {expression}")
            continue
        known = set().union(*(series.get(selector.name, set()) for selector in selectors)) | TARGET_LABELS
        used |= {selector.name for selector in selectors}
        for selector in selectors:
            if selector.name not in series:
                found.append(f"{place}: {selector.name} is not in docs/metrics.md")
                continue
            if required and required not in selector.matchers:
                found.append(f'{place}: {selector.name} is not limited to {{job="$job"}}')
            for label in {label for label, _, _ in selector.matchers} - series[selector.name] - TARGET_LABELS:
                found.append(f"{place}: {selector.name} has no label {label}")
            if selector.name in shared and selector.aggregation not in ("max", None):
                found.append(
                    f"{place}: every dispatcher shows {selector.name}: aggregate with max, not {selector.aggregation}"
                )
        for label in (grouping | set(re.findall(r"{{(\w+)}}", legend))) - known:
            found.append(f"{place}: none of its metrics has the label {label}")

    for metric in metrics:
        if not used & set(metric.series()):
            found.append(f"docs/metrics.md: {metric.name} is on no dashboard and in no alert")
    for rule in alert_rules():
        if rule["annotations"]["runbook"] != f"docs/runbook.md#{rule['alert'].lower()}" or rule["alert"] not in titles:
            found.append(f"{RULES}: {rule['alert']} links no section of docs/runbook.md")
    return found


def _files(boards):
    """The files are in the form that `--write` gives them, and the runbook's dashboard is the runbook."""
    for name, board in boards.items():
        if (dashboards.FOLDER / name).read_text() != dashboards.formatted(board):
            yield f"deploy/grafana/{name} is formatted otherwise: run scripts/check-dashboards --write"
    file = ROOT / runbook.FILE
    if not file.exists() or file.read_text() != dashboards.formatted(runbook.dashboard()):
        yield f"{runbook.FILE} is not docs/runbook.md: run scripts/check-dashboards --write"


def write():
    """Formats the dashboards, and makes the runbook's."""
    for name, board in dashboards.load().items():
        (dashboards.FOLDER / name).write_text(dashboards.formatted(board))
    (ROOT / runbook.FILE).write_text(dashboards.formatted(runbook.dashboard()))


def _layout(boards):
    """Each dashboard and panel is told apart, explained, and in its own place."""
    uids = [board["uid"] for board in boards.values()] + [runbook.UID]
    if len(set(uids)) < len(uids) or any(not board["title"] for board in boards.values()):
        yield f"dashboards share a uid or have no title: {uids}"
    for name, board in boards.items():
        variables = {variable["name"]: variable.get("datasource") for variable in board["templating"]["list"]}
        if variables != {"datasource": None, "job": DATASOURCE}:
            yield f"{name}: its variables and their data sources are {variables}"
        ids = [panel["id"] for panel in board["panels"]]
        if len(set(ids)) < len(ids):
            yield f"{name}: panels share an id: {ids}"
        taken = {}
        for panel in board["panels"]:
            place = f"{name}: panel {panel['id']} ({panel.get('title')})"
            at = panel["gridPos"]
            cells = [(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])]
            for other in {taken[cell] for cell in cells if cell in taken}:
                yield f"{place} covers panel {other}"
            taken.update(dict.fromkeys(cells, panel["id"]))
            if at["x"] + at["w"] > 24:
                yield f"{place} is wider than the dashboard"
            if panel["type"] == "row":
                continue
            if not all(
                [panel["title"], panel["description"], panel["targets"], panel["fieldConfig"]["defaults"]["unit"]]
            ):
                yield f"{place} lacks a title, a description, a query or a unit"
            if panel["datasource"] != DATASOURCE:
                yield f"{place} does not use the data source that is chosen"


def _links(boards, titles):
    """Links to the runbook lead to the section that they name."""
    for name, board in boards.items():
        for panel in board["panels"]:
            for link in panel.get("links", []):
                title = link["title"].removeprefix("Runbook: ")
                if title not in titles or link != runbook.link(titles, title):
                    yield f"{name}: panel {panel['id']} ({panel['title']}): {json.dumps(link)} is no section of the runbook"
