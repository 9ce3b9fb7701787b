"""Checks that need the running installation and its Prometheus."""

import re
import subprocess
import urllib.request

from . import dashboards
from .catalogue import documented
from .process import Failed, wait_for
from .promql import parse
from .static import alert_rules

WINDOW = "15s"  # in place of $__rate_interval
OPERATORS = {"Equal": "=", "NotEqual": "!=", "Re": "=~", "NotRe": "!~"}


def metrics(installation, say):
    """Every documented metric has a value on /metrics of some process, and promtool finds nothing to criticize."""
    values = {}
    for service in installation.services:
        with urllib.request.urlopen(f"http://{service.metrics}/metrics", timeout=10) as response:
            text = response.read()
        checked = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True)
        said = (checked.stdout + checked.stderr).decode()
        if checked.returncode or said.strip():
            raise Failed(f"promtool check metrics, {service.name}: {said}")
        for line in text.decode().splitlines():
            if sample := re.fullmatch(r"(\w+)(?:{(.*)})? (\S+)", line):
                float(sample[3])
                values.setdefault(sample[1], []).append(sample[2] or "")
    missing = [
        name
        for metric in documented()
        for name, labels in metric.series().items()
        if not any(labels <= set(re.findall(r'(\w+)="', one)) for one in values.get(name, []))
    ]
    if missing:
        raise Failed(f"no process shows {', '.join(missing)}, with the documented labels")
    say(
        f"  {len(documented())} documented metrics have values; promtool check metrics: clean, {len(installation.services)} processes"
    )


def queries(monitoring, say):
    """Every query of every dashboard returns series, and each selector in it and each of its labels' values exists."""
    boards = dashboards.load()
    known = {}
    problems, series = [], 0
    for query in dashboards.queries(boards):
        expression = query.expression(WINDOW)
        found = monitoring.query(expression)
        series += len(found)
        if not found:
            problems.append(f"{query.place} returns nothing: {expression}")
        wanted = set(re.findall(r"{{(\w+)}}", query.target["legendFormat"]))
        for labels, _ in found:
            if wanted - set(labels):
                problems.append(f"{query.place} returns no {wanted - set(labels)}: {labels}")
        for selector in parse(expression)[0]:
            for label, operator, value in selector.matchers:
                if (selector.name, label) not in known:
                    match = {"match[]": selector.name}
                    known[selector.name, label] = monitoring.get(f"label/{label}/values", **match)
                pattern = value if operator in ("Re", "NotRe") else re.escape(value)
                if not any(re.fullmatch(pattern, live) for live in known[selector.name, label]):
                    live = known[selector.name, label]
                    problems.append(
                        f"{query.place}: no {selector.name} has {label}{OPERATORS[operator]}{value}, but {live}"
                    )
    if problems:
        raise Failed("\n".join(problems))
    say(
        f"  {len(dashboards.queries(boards))} queries of {len(boards)} dashboards return {series} series; every label value they name exists"
    )


def rules(monitoring, say):
    """Prometheus evaluates every rule of alerts.yml without an error."""
    groups = monitoring.get("rules")["groups"]
    evaluated = {rule["name"]: rule for group in groups for rule in group["rules"]}
    for rule in alert_rules():
        one = evaluated.get(rule["alert"])
        if one is None or one["health"] != "ok" or one.get("lastError"):
            raise Failed(f"{rule['alert']} is not evaluated: {one}")
    say(f"  {len(evaluated)} rules of alerts.yml are evaluated without an error")


def alerts(installation, monitoring, check, say):
    """Without dispatchers, and with ones that get nothing to do, somebody is paged, and told when it is over."""

    def active(name, wanted, seconds):
        def condition():
            check()
            return (name in monitoring.firing()) == wanted

        wait_for(f"{name} is {'firing' if wanted else 'resolved'} in Alertmanager", condition, seconds)
        say(f"  {name}: {'firing' if wanted else 'resolved'}")

    def told(name, status):
        wait_for(
            f"a notification of {name}, {status}", lambda: ("page", name, status) in monitoring.notifications.seen, 30
        )

    statuses = [dispatcher.stop() for dispatcher in installation.dispatchers]
    if any(statuses):
        raise Failed(f"dispatchers ended with status {statuses}")
    say("  the dispatchers are stopped")
    active("NoDispatcher", True, 60)
    active("NotMeasured", True, 90)
    wait_for("NotMeasured is suppressed by NoDispatcher", lambda: monitoring.firing().get("NotMeasured"), 30)
    say("  NotMeasured: suppressed by NoDispatcher")
    # Stopped dispatchers measure nothing, so how late deliveries are is known only once they run again. Rows that another
    # session has locked are skipped.
    release = installation.hold("SELECT 1 FROM open_deliveries FOR UPDATE")
    try:
        for dispatcher in installation.dispatchers:
            dispatcher.start()
        say("  the dispatchers are started; a long transaction keeps what waits locked")
        active("NoDispatcher", False, 60)
        active("NotMeasured", False, 60)
        active("DeliveriesLate", True, 120)
    finally:
        release()
    say("  the long transaction has ended")
    active("DeliveriesLate", False, 120)
    for name in ("NoDispatcher", "DeliveriesLate"):
        told(name, "firing")
        told(name, "resolved")
    say("  Alertmanager has notified the receiver `page` of NoDispatcher and DeliveriesLate, and of their end")
