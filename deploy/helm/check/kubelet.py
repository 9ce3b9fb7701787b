"""Runs pods as a kubelet does, each as one container of the Docker engine: probes, preStop, grace period."""

import http.client
import itertools
import subprocess
import threading
import time

# Of everything that the test makes; what an interrupted one has left is removed by it.
LABEL = "redial-chart-test"
numbers = itertools.count(1)


def docker(*arguments, text=None):
    """Returns the output of a docker command."""
    command = ["docker", *map(str, arguments)]
    ended = subprocess.run(command, input=text, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if ended.returncode:
        raise RuntimeError(f"{' '.join(command[:3])} failed: {ended.stdout[-2000:]}")
    return ended.stdout.strip()


def wait_for(condition, seconds, what):
    """Waits until `condition` returns something true, and returns that."""
    deadline = time.monotonic() + seconds
    while not (result := condition()):
        assert time.monotonic() < deadline, f"after {seconds} s: {what}"
        time.sleep(0.1)
    return result


def memory(quantity):
    """Converts Kubernetes' 512Mi into Docker's 512m."""
    assert quantity.endswith(("Mi", "Gi")), f"a memory limit of {quantity}"
    return quantity.removesuffix("i").lower()


def options(pod, secrets, network):
    """Returns the arguments of `docker run` for a rendered pod: its one container, as the manifest says."""
    (container,) = pod["containers"]
    user, rights = pod["securityContext"], container["securityContext"]
    # Docker's default seccomp profile is RuntimeDefault; by default it gives no token.
    assert user["seccompProfile"] == {"type": "RuntimeDefault"} and not pod.get("volumes")
    arguments = [
        "--label",
        LABEL,
        "--network",
        network,
        "--memory",
        memory(container["resources"]["limits"]["memory"]),
    ]
    arguments += ["--user", f"{user['runAsUser']}:{user['runAsGroup']}"]
    if rights["readOnlyRootFilesystem"]:
        arguments.append("--read-only")
    if not rights["allowPrivilegeEscalation"]:
        arguments += ["--security-opt", "no-new-privileges"]
    for capability in rights["capabilities"]["drop"]:
        arguments += ["--cap-drop", capability]
    return arguments + environment(container, secrets)


def environment(container, secrets):
    """Returns the arguments of `docker run` for a container's variables."""
    arguments = []
    for variable in container["env"]:
        value = variable.get("value")
        if value is None:
            reference = variable["valueFrom"]["secretKeyRef"]
            value = secrets[reference["name"]][reference["key"]]
        arguments += ["--env", f"{variable['name']}={value}"]
    return arguments


def run_job(job, secrets, network):
    """Runs a rendered Job to its end, which must be a success."""
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    return docker("run", "--rm", *options(pod, secrets, network), container["image"], *container["args"])


class Pod:
    """A pod of a Deployment, from its start to its end."""

    def __init__(self, template, secrets, network):
        self.spec = template["spec"]
        (self.container,) = self.spec["containers"]
        self.name = f"{LABEL}-{self.container['name']}-{next(numbers)}"
        self.ready_since = None
        self.terminating_since = None
        self.ended = threading.Event()
        self.seconds_to_end = None
        self.troubles = []
        ports = {port["name"]: port["containerPort"] for port in self.container["ports"]}
        published = [argument for port in ports.values() for argument in ("--publish", f"127.0.0.1::{port}")]
        arguments = options(self.spec, secrets, network)
        docker(
            "run",
            "--detach",
            "--name",
            self.name,
            *published,
            *arguments,
            self.container["image"],
            *self.container["args"],
        )
        # Published on the loopback interface, at any free port.
        self.ports = {
            name: int(docker("port", self.name, port).split(":")[1]) for name, port in ports.items()
        }
        threading.Thread(target=self._watch_end, daemon=True).start()
        threading.Thread(target=self._probe, daemon=True).start()

    def _watch_end(self):
        code = docker("wait", self.name)
        if self.terminating_since is None or code != "0":
            self.troubles.append(f"{self.name} ended with {code}")
        self.ready_since = None
        self.ended.set()

    def _probe(self):
        if not self._keep(self.container["startupProbe"], until_passed=True):
            return
        liveness = threading.Thread(target=self._keep, args=[self.container["livenessProbe"]], daemon=True)
        liveness.start()
        self._keep(self.container["readinessProbe"], self._judge_ready)

    def _judge_ready(self, passes):
        if passes and self.ready_since is None:
            self.ready_since = time.monotonic()
        elif not passes and self.ready_since is not None:
            self.ready_since = None
            if self.terminating_since is None:
                self.troubles.append(f"{self.name} became unready")

    def _keep(self, probe, judge=None, until_passed=False):
        """Probes periodically. Failures of a probe without `judge` make the kubelet restart the pod."""
        failures = 0
        while not self.ended.wait(probe["periodSeconds"] if failures or not until_passed else 0):
            passes = self._passes(probe)
            failures = 0 if passes else failures + 1
            if passes and until_passed:
                return True
            if judge and (passes or failures >= probe["failureThreshold"]):
                judge(passes)
            elif failures == probe["failureThreshold"] and self.terminating_since is None:
                self.troubles.append(
                    f"{self.name} must be restarted: {probe['httpGet']['path']} failed {failures} times"
                )
                return False
        return False

    def _passes(self, probe):
        connection = http.client.HTTPConnection(
            "127.0.0.1", self.ports[probe["httpGet"]["port"]], timeout=probe["timeoutSeconds"]
        )
        try:
            connection.request("GET", probe["httpGet"]["path"])
            return 200 <= connection.getresponse().status < 400
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def is_available(self, min_ready_seconds):
        ready_since = self.ready_since
        return ready_since is not None and time.monotonic() - ready_since >= min_ready_seconds

    def terminate(self):
        """Ends the pod: preStop, SIGTERM, and SIGKILL after the grace period, which begins now."""
        self.terminating_since = time.monotonic()
        time.sleep(self.container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0))
        docker("kill", "--signal", "TERM", self.name)
        left = self.terminating_since + self.spec["terminationGracePeriodSeconds"] - time.monotonic()
        if not self.ended.wait(left):
            self.troubles.append(f"{self.name} was killed at the end of its grace period")
            docker("kill", self.name)
            self.ended.wait()
        self.seconds_to_end = time.monotonic() - self.terminating_since

    def log(self):
        return docker("logs", self.name)
