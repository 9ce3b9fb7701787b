"""Runs the rendered chart in the Docker engine, under load: every pod is evicted, then both Deployments are rolled to
another tag. No request may fail, and every accepted delivery must arrive once. Run by scripts/test-chart --run.

Arguments: an image with the program, and value files to add.
"""

import base64
import collections
import http.client
import json
import os
import pathlib
import sys
import threading
import time
import urllib.parse
import uuid

from controllers import Deployment, Service
from kubelet import LABEL, docker, environment, run_job, wait_for
from load import Load
from rendering import RELEASE, load, merge, render, value_files

HERE = pathlib.Path(__file__).parent
SUBNET, CONTAINERS, RECEIVER = "10.219.92.0/24", "10.219.92.128/25", "10.219.92.2"
RUNS = 24_000
# Half of the responses take a second, so that attempts are in flight whenever a dispatcher is ended.
URLS = ["http://receiver:9090/ok", "http://receiver:9090/hang/1"]
VARIABLES = {
    "REDIAL_DATABASE__URL": "postgres://redial:test@postgres:5432/redial",
    "REDIAL_BROKER__URL": "amqp://redial:test@rabbitmq:5672",
    "REDIAL_SECRETS__KEYS": f"test:{base64.b64encode(os.urandom(32)).decode()}",
}


def main(image, *paths):
    values = load(HERE / "run-values.yaml")
    for path in paths:
        values = merge(values, load(pathlib.Path(path)))
    remove_all()
    try:
        Test(image, values).run()
    except BaseException:
        print_logs()
        raise
    finally:
        remove_all()


def secrets_of(release):
    """Returns the Secrets that a release refers to: their keys and values by name."""
    secrets = collections.defaultdict(dict)
    for workload in release.of("Deployment") + release.of("Job"):
        (container,) = workload["spec"]["template"]["spec"]["containers"]
        for variable in container["env"]:
            if "valueFrom" in variable:
                reference = variable["valueFrom"]["secretKeyRef"]
                secrets[reference["name"]][reference["key"]] = VARIABLES[variable["name"]]
    return secrets


def containers():
    return docker("ps", "--all", "--filter", f"label={LABEL}", "--format", "{{.Names}}").split()


def print_logs():
    for name in containers():
        print(f"\n== The end of the log of {name}\n{docker('logs', '--tail', 20, name)}", flush=True)


def remove_all():
    if left := containers():
        docker("rm", "--force", "--volumes", *left)
    if docker("network", "ls", "--quiet", "--filter", f"name=^{LABEL}$"):
        docker("network", "rm", LABEL)
    if tags := docker("images", "--format", "{{.Repository}}:{{.Tag}}", LABEL).split():
        docker("rmi", *tags)


def step(text):
    print(f"\n== {text}", flush=True)


class Test:
    def __init__(self, image, values):
        self.image, self.values = image, values
        self.release = self.rendered("first")
        self.secrets = secrets_of(self.release)
        self.deployments = {name: self.deployment(name) for name in ("api", "dispatcher")}
        self.api, self.dispatcher = self.deployments.values()

    def deployment(self, name):
        """Returns the controller of a Deployment. An autoscaled one has its fewest replicas."""
        rendered = self.release.get("Deployment", name)
        replicas = rendered["spec"].get("replicas")
        for scaler in self.release.of("ScaledObject") + self.release.of("HorizontalPodAutoscaler"):
            if scaler["spec"]["scaleTargetRef"]["name"] == rendered["metadata"]["name"]:
                replicas = scaler["spec"].get("minReplicaCount", scaler["spec"].get("minReplicas"))
        return Deployment(rendered, replicas, self.secrets, LABEL)

    def rendered(self, tag):
        """Returns the release with an image of that tag, which it makes."""
        docker("tag", self.image, f"{LABEL}:{tag}")
        return render(merge(self.values, {"image": {"repository": LABEL, "tag": tag}}))

    def run(self):
        step("Settings of the examples")
        self.check_settings()
        step("Servers")
        self.start_servers()
        step("Installation")
        self.install()
        step("Load, and the eviction of every pod")
        service = Service(self.api, self.release.get("Service", "api")["spec"]["ports"][0]["targetPort"])
        clients = Load(service, self.token, self.runs)
        try:
            self.evict()
            step("Upgrade of both Deployments at once")
            self.upgrade()
        finally:
            clients.stop()
            self.report(clients)
        step("Deliveries")
        self.check_deliveries(clients, service)

    def check_settings(self):
        """Each example's settings are accepted by the program."""
        for path in value_files():
            release = render(load(path))
            for deployment in release.of("Deployment"):
                (container,) = deployment["spec"]["template"]["spec"]["containers"]
                docker("run", "--rm", *environment(container, secrets_of(release)), self.image, "config")
        print(", ".join(path.stem for path in value_files()))

    def start_servers(self):
        docker("network", "create", "--label", LABEL, "--subnet", SUBNET, "--ip-range", CONTAINERS, LABEL)
        self.start("postgres", "postgres:17", POSTGRES_USER="redial", POSTGRES_PASSWORD="test")
        self.start(
            "rabbitmq", "rabbitmq:4-management", RABBITMQ_DEFAULT_USER="redial", RABBITMQ_DEFAULT_PASS="test"
        )
        # Over TCP: the temporary server that sets up a database listens on its socket only.
        self.wait_until_ready("postgres", "pg_isready", "-q", "-h", "127.0.0.1", "-U", "redial")
        self.wait_until_ready("rabbitmq", "rabbitmq-diagnostics", "-q", "check_port_listener", "5672")
        print("PostgreSQL and RabbitMQ are ready")

    def start(self, name, image, *command, ip=None, **variables):
        """Starts a server of the test."""
        arguments = [argument for pair in variables.items() for argument in ("--env", "=".join(pair))]
        arguments += ["--ip", ip] if ip else []
        container = f"{LABEL}-{name}"
        docker(
            "run",
            "--detach",
            "--label",
            LABEL,
            "--name",
            container,
            "--network",
            LABEL,
            "--network-alias",
            name,
            *arguments,
            image,
            *command,
        )

    def wait_until_ready(self, name, *command):
        def is_ready():
            try:
                return docker("exec", f"{LABEL}-{name}", *command) or True
            except RuntimeError:
                return False

        wait_for(is_ready, 120, f"{name} is not ready")

    def install(self):
        print(run_job(self.release.get("Job", "migrate"), self.secrets, LABEL))
        for deployment in self.deployments.values():
            deployment.install()
        for pod in self.api.pods + self.dispatcher.pods:
            assert b"redial_build_info" in get(pod.ports["metrics"], "/metrics"), f"{pod.name} has no metrics"
        for scaler in self.release.of("ScaledObject"):
            self.check_trigger(scaler["spec"]["triggers"][0]["metadata"])

        def redial(*arguments, text=None):
            return docker("exec", "--interactive", self.api.pods[0].name, "redial", *arguments, text=text)

        org = redial("org", "create", RELEASE)
        self.token = redial("token", "create", "--org", org)
        secret = redial("secret", "create", "--org", org)
        self.start("receiver", self.image, "listen", "0.0.0.0:9090", "--secret", secret, ip=RECEIVER)
        self.runs = [str(uuid.uuid4()) for _ in range(RUNS)]
        lines = [
            json.dumps(
                {
                    "id": run,
                    "status_code": "succeeded",
                    "output": {},
                    "callback_url": URLS[number % len(URLS)],
                }
            )
            for number, run in enumerate(self.runs)
        ]
        redial("runs", "import", "-", "--org", org, text="\n".join(lines))
        print(
            f"{len(self.api.pods)} apis and {len(self.dispatcher.pods)} dispatchers are ready;"
            f" {RUNS} runs are recorded"
        )

    def check_trigger(self, trigger):
        """Every dispatcher answers the query that KEDA makes."""
        path = urllib.parse.urlsplit(trigger["url"]).path
        for pod in self.dispatcher.pods:
            work = json.loads(get(pod.ports["metrics"], path))[trigger["valueLocation"]]
            assert isinstance(work, int), f"{path} answers {work!r}"

    def evict(self):
        self.of_each(lambda deployment: deployment.evict_each())

    def upgrade(self):
        upgraded = self.rendered("second")
        print(run_job(upgraded.get("Job", "migrate"), self.secrets, LABEL))
        names = {deployment: name for name, deployment in self.deployments.items()}
        self.of_each(lambda deployment: deployment.roll(upgraded.get("Deployment", names[deployment])))
        images = {
            docker("inspect", "--format", "{{.Config.Image}}", pod.name)
            for deployment in self.deployments.values()
            for pod in deployment.running()
        }
        assert images == {f"{LABEL}:second"}, f"after the upgrade {images} run"

    def of_each(self, action):
        """Does something to both Deployments at once, and prints how their pods ended."""
        ended = {deployment: len(deployment.pods) for deployment in self.deployments.values()}
        errors = []

        def attempt(deployment):
            try:
                action(deployment)
            except BaseException as error:
                errors.append(error)

        threads = [
            threading.Thread(target=attempt, args=[deployment]) for deployment in self.deployments.values()
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if errors:
            raise errors[0]
        for name, deployment in self.deployments.items():
            seconds = [pod.seconds_to_end for pod in deployment.pods if pod.seconds_to_end]
            grace = deployment.spec["template"]["spec"]["terminationGracePeriodSeconds"]
            started = len(deployment.pods) - ended[deployment]
            print(f"{name}: {started} pods replaced; ending took at most {max(seconds):.1f} s of {grace} s")

    def report(self, clients):
        seconds = sorted(clients.seconds)
        print(
            f"{len(seconds)} requests, {len(clients.accepted)} accepted, {len(clients.failures)} failed, "
            f"p99 {seconds[len(seconds) * 99 // 100]:.3f} s, longest {seconds[-1]:.3f} s; "
            f"{clients.reopened} kept connections were reopened"
        )

    def check_deliveries(self, clients, service):
        troubles = [
            trouble for one in self.deployments.values() for pod in one.pods for trouble in pod.troubles
        ]
        assert not clients.failures and not troubles, "\n".join(clients.failures[:20] + troubles)
        wait_for(
            lambda: not self.listed(service, "pending") and not self.listed(service, "delivering"),
            90,
            "deliveries are still open",
        )
        succeeded = self.listed(service, "succeeded")
        lost = clients.accepted.keys() - succeeded.keys()
        assert not lost, f"{len(lost)} accepted deliveries did not succeed, such as {lost.pop()}"
        arrived, verdicts = self.arrivals()
        missing = clients.accepted.keys() - arrived.keys()
        assert not missing, f"{len(missing)} deliveries did not arrive, such as {missing.pop()}"
        repeated = [
            delivery for delivery in clients.accepted if (arrived[delivery], succeeded[delivery]) != (1, 1)
        ]
        assert not repeated, f"{len(repeated)} deliveries arrived repeatedly, such as {repeated[0]}"
        assert set(verdicts) == {"signatures valid"}, verdicts
        in_flight = [self.finished(pod) for pod in self.dispatcher.pods if pod.ended.is_set()]
        assert sum(in_flight), "no dispatcher had anything in flight when it was ended"
        print(f"{len(clients.accepted)} deliveries accepted, 0 lost, each arrived once and is recorded;")
        print(f"the {len(in_flight)} dispatchers that were ended finished {in_flight} attempts after SIGTERM")

    def listed(self, service, status):
        """Returns the attempts of each delivery with this status."""
        found, path = {}, f"/v1/callback-deliveries?status_code={status}&fields=id,attempt_count&limit=500"
        cursor = ""
        while cursor is not None:
            page = json.loads(get(service.endpoint(), path + cursor, self.token))
            found |= {one["id"]: one["attempt_count"] for one in page["items"]}
            cursor = page["next"] and f"&pq={page['next']}"
        return found

    def arrivals(self):
        """Returns how often each delivery arrived, and how often each verdict on signatures was printed."""
        lines = [line.strip() for line in docker("logs", f"{LABEL}-receiver").splitlines()]
        arrived = collections.Counter(line.split()[1] for line in lines if line.startswith("webhook-id: "))
        verdicts = collections.Counter(
            line.split("; answered")[0] for line in lines if "; answered: " in line
        )
        return arrived, verdicts

    def finished(self, pod):
        """Returns how many attempts a pod finished after SIGTERM."""
        after = pod.log().partition('"message":"stopping"')[2]
        assert "nothing left in flight" in after, f"{pod.name} did not finish its attempts:\n{after[-2000:]}"
        return after.count('"message":"attempt"')


def get(port, path, token=None):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("GET", path, headers={"Authorization": f"Bearer {token}"} if token else {})
    response = connection.getresponse()
    body = response.read()
    connection.close()
    assert response.status == 200, f"{path}: {response.status} {body[:300]}"
    return body


if __name__ == "__main__":
    began = time.monotonic()
    main(*sys.argv[1:])
    print(f"\ntest-chart: passed in {time.monotonic() - began:.0f} s")
