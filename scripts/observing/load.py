"""Load with failing receivers and invalid requests, and faults in everything around it."""

import http.client
import itertools
import json
import random
import resource
import signal
import threading
import time
import uuid

from .installation import TIMEOUT_SECONDS
from .process import Failed, wait_for

CLIENTS = 3
REQUESTS_A_SECOND = 12  # of each client
# Where callbacks go: weight, receiver, path. The receiver's paths are those of `redial listen`.
CALLBACKS = [
    (55, "healthy", "http", "/ok"),
    (15, "healthy", "http", "/hang/1"),
    (6, "failing", "http", "/status/503"),
    (6, "failing", "http", "/fail-first/1"),
    (4, "failing", "http", "/status/404"),
    # Few: a destination that times out gets one attempt at a time of each dispatcher, one that pauses one attempt in all.
    (0.25, "hanging", "http", f"/hang/{20 * TIMEOUT_SECONDS}"),
    (0.25, "silent", "http", f"/hang/{20 * TIMEOUT_SECONDS}"),
    (0.5, "pausing", "http", "/retry-after/1"),
    (2, "gone", "http", "/gone"),
    (3, "refusing", "http", "/"),
    (2, "healthy", "https", "/"),  # speaks no TLS
]


class Load:
    """Clients that record runs and redeliver them until `stop`."""

    def __init__(self, installation):
        self.installation = installation
        self.statuses = {}
        self._ended, self._problem = threading.Event(), None
        self._threads = [threading.Thread(target=self._run, args=(seed,), daemon=True) for seed in range(CLIENTS)]
        for thread in self._threads:
            thread.start()

    def check(self):
        """Failed if a client got a response that it did not ask for."""
        if self._problem:
            raise self._problem

    def stop(self):
        self._ended.set()
        for thread in self._threads:
            thread.join()

    def _run(self, seed):
        try:
            client = Client(self.installation, random.Random(seed))
            for turn in itertools.count():
                if self._ended.wait(1 / REQUESTS_A_SECOND):
                    return
                status = client.turn(turn)
                self.statuses[status] = self.statuses.get(status, 0) + 1
        except Exception as error:  # reported by `check`
            self._problem = error


class Client:
    def __init__(self, installation, chance):
        self.receivers, self.token, self.chance = installation.receivers, installation.token, chance
        self.connection = http.client.HTTPConnection("127.0.0.1", installation.api_port, timeout=30)
        self.runs = []

    def turn(self, turn):
        """Sends a request and returns the status of its response."""
        if turn % 20 == 19:
            return self._invalid(turn // 20)
        if turn % 3 == 2 and self.runs:
            run = self.runs.pop(0)
            # 404: its recording was answered 503. 422: its delivery is still open.
            return self._request("POST", f"/v1/runs/{run}/callback-redeliveries", {201, 404, 422, 503})
        _, receiver, scheme, path = self.chance.choices(CALLBACKS, [weight for weight, *_ in CALLBACKS])[0]
        run = str(uuid.uuid4())
        body = {"status_code": "succeeded", "output": {"text": "x" * 300}}
        body["callback_url"] = f"{scheme}://{self.receivers[receiver]}{path}"
        status = self._request("PUT", f"/v1/runs/{run}", {200, 201, 503}, body)
        self.runs.append(run)
        return status

    def _invalid(self, turn):
        unknown = f"/v1/runs/{uuid.uuid4()}"
        match turn % 4:
            case 0:
                return self._request("POST", f"{unknown}/callback-redeliveries", {404, 503})
            case 1:
                return self._request("PUT", unknown, {422}, {"status_code": "done"})
            case 2:
                return self._request("GET", unknown, {401, 503}, token="rdl_wrong")
            case _:
                return self._request("GET", "/v1/nothing", {404})

    def _request(self, method, path, expected, body=None, token=None):
        headers = {"Authorization": f"Bearer {token or self.token}", "Content-Type": "application/json"}
        self.connection.request(method, path, json.dumps(body) if body else None, headers)
        response = self.connection.getresponse()
        answer = response.read()
        if response.status not in expected:
            raise Failed(f"{method} {path} was answered {response.status} {answer.decode()}, not one of {expected}")
        return response.status


class Faults:
    """Faults, each until Prometheus shows its effect."""

    def __init__(self, installation, monitoring, check):
        self.installation, self.monitoring, self.check = installation, monitoring, check

    def until(self, what, expression, seconds=60):
        """Waits until a query of Prometheus returns a series."""

        def condition():
            self.check()
            return self.monitoring.query(expression)

        return wait_for(f"{what} ({expression})", condition, seconds)

    def everything_flows(self):
        self.until("attempts of every kind", "count(sum by (outcome) (rate(redial_attempts_total[10s])) > 0) >= 3")
        self.until("a hold", 'redial_destinations{state="held"} > 0')
        self.until("retries", 'rate(redial_attempt_lateness_seconds_count{kind="retry"}[10s]) > 0')

    def calm(self, seconds):
        """Nothing but the load, for that long."""
        self.until("nothing is due for long", "max(redial_oldest_due_age_seconds) < 5", 120)
        self.until(
            f"{seconds} s of it",
            f"sum_over_time((max(redial_oldest_due_age_seconds) < bool 5)[{seconds}s:1s]) >= {seconds}",
            300,
        )

    def no_broker(self):
        self.installation.proxy.cut()
        self.until("the broker's absence", "max(max_over_time(redial_broker_connected[8s])) == 0")
        self.installation.proxy.restore()
        self.until("the broker's return", "min(redial_broker_connected) == 1")
        self.until("dropped doorbells", 'sum(redial_doorbells_total{result="dropped"}) > 0')

    def database_sessions_end(self):
        """Ends all sessions of the database again and again until a transaction is caught."""

        def caught():
            self.installation.cut_database()
            self.check()
            return self.monitoring.query('redial_store_errors_total{kind="unavailable"}')

        wait_for("a failed transaction", caught, 60)

    def database_stands_still(self):
        """A lock on a table keeps everyone from writing to it, as a careless migration would."""
        release = self.installation.hold("LOCK TABLE open_deliveries IN EXCLUSIVE MODE")
        try:
            self.until("unwritten results", "max(redial_oldest_unwritten_result_age_seconds) > 5")
            self.until(
                "responses 503",
                'rate(http_server_request_duration_seconds_count{http_response_status_code="503"}[5s]) > 0',
            )
        finally:
            release()
        self.until("all results written", "max(redial_oldest_unwritten_result_age_seconds) == 0")

    def no_file_descriptors(self):
        """A dispatcher can open no more sockets: it hands attempts back."""
        dispatcher = self.installation.dispatchers[-1]
        child, own = dispatcher.child, f'instance="{dispatcher.metrics}"'
        before = resource.prlimit(child.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(child.pid, resource.RLIMIT_NOFILE, (16, before[1]))
        try:
            self.until("its unreadiness", 'min(redial_ready{check="sending"}) == 0')
            self.until("attempts handed back", f'rate(redial_attempts_total{{{own}, outcome="not_sent"}}[10s]) > 0')
        finally:
            resource.prlimit(child.pid, resource.RLIMIT_NOFILE, before)
        self.until("attempts sent again", 'min(redial_ready{check="sending"}) == 1')

    def a_dispatcher_is_killed(self):
        """Its attempts in flight end as outcome_unknown, with their lease."""
        dispatcher = self.installation.dispatchers[0]
        self.until("attempts in flight", f'redial_in_flight_attempts{{instance="{dispatcher.metrics}"}} > 2')
        dispatcher.stop(signal.SIGKILL)
        dispatcher.start()
        self.until("ended leases", "rate(redial_leases_expired_total[3s]) > 0")
        self.until("all ready", "min(redial_ready) == 1 and count(redial_build_info) == 3")

    def run(self, say):
        for fault in (
            self.everything_flows,
            self.no_broker,
            self.database_sessions_end,
            self.database_stands_still,
            self.no_file_descriptors,
            self.a_dispatcher_is_killed,
        ):
            began = time.monotonic()
            fault()
            say(f"  {fault.__name__.replace('_', ' ')}: {time.monotonic() - began:.0f} s")
