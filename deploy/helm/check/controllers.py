"""What Kubernetes' controllers do with a Deployment's pods and a Service's endpoints."""

import random
import threading
import time

from kubelet import Pod, wait_for

# How long a node still routes to a pod that is ending: its endpoint is removed at once, nodes learn it later.
PROPAGATION_SECONDS = 3
START_SECONDS = 90


class Deployment:
    """The pods of a rendered Deployment, including ended ones."""

    def __init__(self, rendered, replicas, secrets, network):
        self.replicas = replicas
        self.rendered, self.secrets, self.network = rendered, secrets, network
        self.pods = []
        self.endings = []

    @property
    def spec(self):
        return self.rendered["spec"]

    def start_pod(self):
        pod = Pod(self.spec["template"], self.secrets, self.network)
        self.pods.append(pod)
        return pod

    def install(self):
        started = [self.start_pod() for _ in range(self.replicas)]
        for pod in started:
            self._wait(pod, 0)

    def running(self):
        return [pod for pod in self.pods if pod.terminating_since is None]

    def evict_each(self):
        """Evicts every pod, as a drain of its node does. The disruption budget lets one be away at a time."""
        for pod in self.running():
            self._end(pod)
            self._wait(self.start_pod(), 0)
        self.join()

    def roll(self, rendered):
        """Replaces every pod by one of the new template: starts one more, and ends one when that is available."""
        assert self.spec["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}
        self.rendered = rendered
        for pod in self.running():
            self._wait(self.start_pod(), self.spec["minReadySeconds"])
            self._end(pod)
        self.join()

    def _wait(self, pod, min_ready_seconds):
        seconds = START_SECONDS + min_ready_seconds
        wait_for(
            lambda: pod.is_available(min_ready_seconds),
            seconds,
            f"{pod.name} is not available\n{pod.troubles}",
        )

    def _end(self, pod):
        # Its successor does not wait for its end.
        ending = threading.Thread(target=pod.terminate)
        ending.start()
        self.endings.append(ending)
        wait_for(lambda: pod.terminating_since, 5, f"{pod.name} does not end")

    def join(self):
        for ending in self.endings:
            ending.join()
        self.endings.clear()


class Service:
    """Routes new connections to the ready pods of a Deployment."""

    def __init__(self, deployment, port):
        self.deployment, self.port = deployment, port

    def endpoint(self):
        """Returns a pod's port on the loopback interface, as routed by a node that learns late."""
        ready = [pod for pod in list(self.deployment.pods) if self._is_routed(pod)]
        assert ready, "the service has no endpoint"
        return random.choice(ready).ports[self.port]

    def _is_routed(self, pod):
        since = pod.terminating_since
        if since is not None:
            return time.monotonic() - since < PROPAGATION_SECONDS
        return pod.ready_since is not None
