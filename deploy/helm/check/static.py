"""Renders the chart with the value files in its folder ci, validates the objects strictly, and checks that it refuses
the values of refusals.yaml. Run by scripts/test-chart."""

import copy
import json
import re
import subprocess
import tempfile
import tomllib

import facts
import helm_python
import network
import schemas
import yaml
from rendering import CHART, REPOSITORY, Refused, load, merge, render, value_files

MINIMAL = CHART / "ci/minimal-values.yaml"
# Computed by hand: the grace periods of api and dispatcher; KEDA's target.
FIGURES = {
    "minimal": (5 + 3 + 5 + 10, 20 + 10, None),
    "keda": (5 + 3 + 5 + 10, 45 + 1 + 10, "358"),
    "cpu": (5 + 60 + 5 + 10, 20 + 10, None),
    "observed": (5 + 3 + 5 + 10, 20 + 10, "179"),
    "high-availability": (15 + 3 + 5 + 10, 20 + 10, None),
}


def check_sources():
    """What the chart repeats from elsewhere is the same there."""
    alerts = REPOSITORY / "deploy/prometheus/alerts.yml"
    copied = CHART / "files/alerts.yml"
    assert copied.read_bytes() == alerts.read_bytes(), f"copy {alerts} to {copied}"
    special = load(CHART / "files/special-addresses.yaml")
    public = network.without("0.0.0.0/0", special["ipv4"]) + network.without("2000::/3", special["ipv6"])
    assert network.collapse(public) == network.public_addresses(), (
        "special-addresses.yaml is not what special.rs has"
    )
    sections = json.loads((CHART / "values.schema.json").read_text())["properties"]["settings"]["properties"]
    known = {
        f"REDIAL_{section}__{key}".upper() for section, keys in sections.items() for key in keys["properties"]
    }
    differing = known ^ (facts.variables() - facts.SET_BY_CHART)
    assert not differing, f"values.schema.json and docs/configuration.md differ in {differing}"
    version = tomllib.loads((REPOSITORY / "Cargo.toml").read_text())["workspace"]["package"]["version"]
    assert load(CHART / "Chart.yaml")["appVersion"] == version, f"appVersion of Chart.yaml is not {version}"
    links = re.findall(r"\]\(([^)#:]+)[^)]*\)", (CHART / "README.md").read_text())
    missing = [link for link in links if not (CHART / link).exists()]
    assert links and not missing, f"README.md links {missing}"


def check_lint(values):
    report = helm_python.lint(CHART, values, strict=True, kube_version=f"v{schemas.OLDEST}.0")
    bad = [message for message in report["messages"] if message["severity"] > 1]
    assert not bad and not report["errors"], f"{bad} {report['errors']}"


def check_values(path):
    name = path.stem.removesuffix("-values")
    values = load(path)
    check_lint(values)
    release = render(values)
    found = schemas.problems(release.objects)
    assert not found, "\n".join(found)
    facts.check(release, values)
    assert bool(release.of("NetworkPolicy")) == ("networkPolicy" in values)
    if "networkPolicy" in values:
        network.check(release, values)
    grace = [
        release.get("Deployment", component)["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
        for component in facts.SERVICES
    ]
    triggers = [one["spec"]["triggers"][0]["metadata"] for one in release.of("ScaledObject")]
    figures = *grace, triggers[0]["targetValue"] if triggers else None
    assert figures == FIGURES[name], f"{figures} instead of {FIGURES[name]}"
    for trigger in triggers:
        service = release.get("Service", "dispatcher")["metadata"]
        assert trigger["url"] == f"http://{service['name']}.{service['namespace']}.svc:9464/scaling"
    for rule in release.of("PrometheusRule"):
        check_rules(rule)
    assert "redial org create" in release.notes
    print(f"{name}: {len(release.objects)} objects")
    return release


def check_rules(rule):
    with tempfile.NamedTemporaryFile("w", suffix=".yml") as file:
        yaml.safe_dump(rule["spec"], file)
        file.flush()
        subprocess.run(["promtool", "check", "rules", file.name], check=True, stdout=subprocess.DEVNULL)
    assert rule["spec"] == load(REPOSITORY / "deploy/prometheus/alerts.yml")


def check_strictness(releases):
    """Of every kind, an object with an unknown field is found invalid."""
    kinds = {one["kind"]: one for release in releases for one in release.objects}
    for kind, one in kinds.items():
        changed = copy.deepcopy(one)
        changed.get("spec", changed)["surprise"] = 1
        assert schemas.problems([changed]), f"an unknown field of a {kind} is not noticed"
    scaled = copy.deepcopy(kinds["ScaledObject"])
    scaled["spec"]["fallback"]["behavior"] = "sometimes"
    assert schemas.problems([scaled]), "a wrong value of a ScaledObject is not noticed"
    print(f"an unknown field is noticed in each of {len(kinds)} kinds: {', '.join(sorted(kinds))}")


def check_refusals():
    cases = load(REPOSITORY / "deploy/helm/check/refusals.yaml")
    for case in cases:
        try:
            render(merge(load(MINIMAL), case["values"]))
        except Refused as refusal:
            assert case["says"] in str(refusal), f"{case['values']}: {refusal}"
        else:
            raise AssertionError(f"accepted: {case['values']}")
    print(f"{len(cases)} wrong values are refused")


def check_example(path):
    try:
        return check_values(path)
    except AssertionError as error:
        error.add_note(f"with the values of {path}")
        raise


check_sources()
assert {path.stem.removesuffix("-values") for path in value_files()} == set(FIGURES)
check_strictness([check_example(path) for path in value_files()])
check_refusals()
