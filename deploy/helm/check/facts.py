"""What holds for every rendering of the chart."""

import re

from rendering import COMPONENT, NAMESPACE, REPOSITORY

SERVICES = ("api", "dispatcher")
SECRETS = {"REDIAL_DATABASE__URL", "REDIAL_BROKER__URL", "REDIAL_SECRETS__KEYS"}
SET_BY_CHART = SECRETS | {
    "REDIAL_DATABASE__POOL_SIZE",
    "REDIAL_API__LISTEN",
    "REDIAL_DISPATCHER__LISTEN",
    "REDIAL_METRICS__LISTEN",
}


def variables():
    """Returns the variable of every setting in docs/configuration.md."""
    names, section = set(), None
    for line in (REPOSITORY / "docs/configuration.md").read_text().splitlines():
        if line.startswith("## "):
            section = line.removeprefix("## ").upper()
        elif key := re.match(r"\| `(\w+)` \|", line):
            names.add(f"REDIAL_{section}__{key[1].upper()}")
    assert len(names) > 30, f"docs/configuration.md has {len(names)} settings"
    return names


def check(release, values):
    for kind in {one["kind"] for one in release.objects}:
        for one in release.of(kind):
            assert one["metadata"]["namespace"] == NAMESPACE, one["metadata"]
    workloads = release.of("Deployment") + release.of("Job")
    assert {one["metadata"]["labels"][COMPONENT] for one in release.of("Deployment")} == set(SERVICES)
    for workload in workloads:
        check_pod(workload["spec"]["template"]["spec"], values)
    for deployment in release.of("Deployment"):
        check_deployment(deployment, values)
    check_migration(release, values)
    check_selectors(release)


def check_pod(pod, values):
    user = re.search(r"^USER (\d+):(\d+)$", (REPOSITORY / "deploy/Dockerfile").read_text(), re.MULTILINE)
    assert pod["securityContext"] == {
        "runAsNonRoot": True,
        "runAsUser": int(user[1]),
        "runAsGroup": int(user[2]),
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    assert pod["automountServiceAccountToken"] is False and pod["enableServiceLinks"] is False
    (container,) = pod["containers"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert (
        container["image"].startswith(values["image"]["repository"])
        and "memory" in container["resources"]["limits"]
    )
    mounted = {mount["name"] for mount in container.get("volumeMounts", [])}
    assert mounted <= {volume["name"] for volume in pod.get("volumes", [])}
    names = [variable["name"] for variable in container["env"]]
    assert len(names) == len(set(names)), f"set twice, of {names}"
    unknown = {name for name in names if name.startswith("REDIAL_")} - variables()
    assert not unknown, f"docs/configuration.md does not have {unknown}"
    for variable in container["env"]:
        assert (variable["name"] in SECRETS) == ("valueFrom" in variable), variable
    for section, keys in values.get("settings", {}).items():
        for key, value in keys.items():
            given = variable_of(container, f"REDIAL_{section}__{key}".upper())
            assert given == text(value), f"{section}.{key} is {given}, not {value}"


def text(value):
    if isinstance(value, list):
        return ",".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def variable_of(container, name):
    (found,) = [variable for variable in container["env"] if variable["name"] == name]
    return found["value"]


def check_deployment(deployment, values):
    component = deployment["metadata"]["labels"][COMPONENT]
    spec = deployment["spec"]
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    assert container["args"] == [component] and "command" not in container
    assert spec["strategy"] == {
        "type": "RollingUpdate",
        "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0},
    }
    # Connections: see "redial.connections" in the chart.
    assert spec["minReadySeconds"] >= pod["terminationGracePeriodSeconds"]
    assert spec["progressDeadlineSeconds"] > spec["minReadySeconds"]
    scaled = values.get(component, {}).get("autoscaling", {}).get("by", "none") != "none"
    assert ("replicas" not in spec) == scaled

    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    health = "http" if component == "api" else "health"
    address = values.get("listenAddress", "0.0.0.0")
    assert variable_of(container, f"REDIAL_{component}__LISTEN".upper()) == f"{address}:{ports[health]}"
    assert variable_of(container, "REDIAL_METRICS__LISTEN") == f"{address}:{ports['metrics']}"
    probed = {"startupProbe": "/v1/health", "livenessProbe": "/v1/health", "readinessProbe": "/health/ready"}
    for probe, path in probed.items():
        assert container[probe]["httpGet"] == {"path": path, "port": health}
    sleep = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds")
    assert sleep == (values.get("api", {}).get("preStopSeconds", 5) if component == "api" else None)
    spread = {one["topologyKey"]: one["maxSkew"] for one in pod["topologySpreadConstraints"]}
    assert spread == {"topology.kubernetes.io/zone": 1, "kubernetes.io/hostname": 1}
    for constraint in pod["topologySpreadConstraints"]:
        assert constraint["labelSelector"] == spec["selector"]


def check_migration(release, values):
    jobs = release.of("Job")
    assert len(jobs) == values.get("migrations", {}).get("enabled", True)
    for job in jobs:
        annotations, pod = job["metadata"]["annotations"], job["spec"]["template"]["spec"]
        assert annotations["helm.sh/hook"] == "pre-install,pre-upgrade"
        assert pod["containers"][0]["args"] == ["migrate"] and pod["restartPolicy"] == "Never"
        # Of the release's own objects none exists yet at its installation.
        own = {one["metadata"]["name"] for one in release.of("ServiceAccount")}
        assert pod.get("serviceAccountName") not in own
    for account in release.of("ServiceAccount"):
        assert account["automountServiceAccountToken"] is False


def check_selectors(release):
    """Every selector selects the pods of its component and no others; every target exists."""
    pods = {
        one["metadata"]["labels"][COMPONENT]: one["spec"]["template"]["metadata"]["labels"]
        for one in release.of("Deployment") + release.of("Job")
    }

    def selected(labels):
        return [component for component, own in pods.items() if labels.items() <= own.items()]

    for one in release.objects:
        spec, component = one.get("spec", {}), one["metadata"]["labels"][COMPONENT]
        selector = spec.get("selector") or spec.get("podSelector")
        if selector and one["kind"] != "PodMonitor":
            assert selected(selector.get("matchLabels", selector)) == [component], one["metadata"]["name"]
        if "scaleTargetRef" in spec:
            assert spec["scaleTargetRef"]["name"] == release.get("Deployment", component)["metadata"]["name"]
    for component in SERVICES:
        budget = release.get("PodDisruptionBudget", component)["spec"]
        assert budget["maxUnavailable"] == 1 and budget["unhealthyPodEvictionPolicy"] == "AlwaysAllow"
    for monitor in release.of("PodMonitor"):
        selector = monitor["spec"]["selector"]
        (expression,) = selector["matchExpressions"]
        watched = [one for one in selected(selector["matchLabels"]) if one in expression["values"]]
        assert expression["key"] == COMPONENT and sorted(watched) == sorted(SERVICES)
    for rule in release.of("Ingress"):
        service = release.get("Service", "api")
        for host in rule["spec"]["rules"]:
            for path in host["http"]["paths"]:
                assert path["backend"]["service"]["name"] == service["metadata"]["name"]
