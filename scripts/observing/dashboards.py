"""The dashboards of deploy/grafana."""

import json
from dataclasses import dataclass

from .catalogue import ROOT

FOLDER = ROOT / "deploy/grafana"
WIDTH = 120


@dataclass(frozen=True)
class Query:
    board: str
    panel: dict
    target: dict

    @property
    def place(self):
        return f"{self.board}: panel {self.panel['id']} ({self.panel['title']}), query {self.target['refId']}"

    def expression(self, interval, job="redial"):
        """Returns the query with its variables replaced: rates over `interval`."""
        return filled(self.target["expr"], interval, job)


def filled(expression, interval, job="redial"):
    """Returns an expression as Grafana sends it, with rates over `interval`."""
    return expression.replace("$__rate_interval", interval).replace("$job", job)


def load():
    """Returns the dashboards by file name, without the runbook."""
    files = sorted(path for path in FOLDER.glob("*.json") if path.name != "runbook.json")
    return {path.name: json.loads(path.read_text()) for path in files}


def queries(boards):
    """Returns the queries of all panels."""
    return [
        Query(name, panel, target)
        for name, board in boards.items()
        for panel in board["panels"]
        for target in panel.get("targets", [])
    ]


def formatted(value):
    """Returns JSON in which everything that fits on a line is on one line, so that changes can be reviewed."""

    def lines(value, indent, room):
        flat = json.dumps(value, ensure_ascii=False)
        if not isinstance(value, (dict, list)) or len(flat) <= room:
            return flat
        inner = "  " * (indent + 1)
        if isinstance(value, list):
            parts = [lines(item, indent + 1, WIDTH - len(inner)) for item in value]
            opening, closing = "[]"
        else:
            keys = [(f"{json.dumps(key)}: ", item) for key, item in value.items()]
            parts = [key + lines(item, indent + 1, WIDTH - len(inner) - len(key)) for key, item in keys]
            opening, closing = "{}"
        return f"{opening}\n{inner}" + f",\n{inner}".join(parts) + f"\n{'  ' * indent}{closing}"

    return lines(value, 0, 0) + "\n"
