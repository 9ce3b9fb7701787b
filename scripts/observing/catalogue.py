"""The documented metrics, as docs/metrics.md lists them."""

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TARGET_LABELS = {"job", "instance"}  # Prometheus adds them when it scrapes
ROW = re.compile(r"\| `(\w+)` \| (\w+) \| (.*?) \| (.*) \|")


@dataclass(frozen=True)
class Metric:
    name: str
    kind: str
    labels: frozenset
    help: str

    @property
    def is_shared(self):
        """Whether every process shows the same fact of the whole installation, so that a sum counts it several times."""
        return "ggregate with max" in self.help

    def series(self):
        """Returns the names of its series, each with its labels."""
        if self.kind != "histogram":
            return {self.name: self.labels}
        return {
            f"{self.name}_bucket": self.labels | {"le"},
            f"{self.name}_count": self.labels,
            f"{self.name}_sum": self.labels,
        }


def documented():
    """Returns the metrics of docs/metrics.md."""
    rows = map(ROW.fullmatch, (ROOT / "docs/metrics.md").read_text().splitlines())
    found = [row.groups() for row in rows if row and row[2] in ("counter", "gauge", "histogram")]
    return [Metric(name, kind, frozenset(re.findall(r"\w+", labels)), help) for name, kind, labels, help in found]
