"""Clients that request redeliveries through a Service at a steady rate, and what they got."""

import http.client
import json
import threading
import time
import uuid

CLIENTS = 8
REQUESTS_PER_SECOND = 10  # of each client
TIMEOUT_SECONDS = 10


class Load:
    """Requests a redelivery of each of `runs` once, until it is stopped."""

    def __init__(self, service, token, runs):
        self.service, self.token, self.runs = service, token, iter(runs)
        self.lock, self.stopping = threading.Lock(), threading.Event()
        self.accepted = {}  # delivery: run
        self.failures = []
        self.reopened = 0
        self.seconds = []
        # Half of the clients open a connection for each request, half keep theirs.
        self.threads = [
            threading.Thread(target=self._client, args=[bool(number % 2)]) for number in range(CLIENTS)
        ]
        for thread in self.threads:
            thread.start()

    def stop(self):
        self.stopping.set()
        for thread in self.threads:
            thread.join()

    def _client(self, keeps_connection):
        connection, due = None, time.monotonic()
        while not self.stopping.wait(max(0, due - time.monotonic())):
            due += 1 / REQUESTS_PER_SECOND
            with self.lock:
                run = next(self.runs, None)
            if run is None:
                self.failures.append("the runs were used up before the load was stopped")
                return
            began = time.monotonic()
            try:
                connection = self._redeliver(run, connection)
            except (OSError, http.client.HTTPException, AssertionError) as error:
                self.failures.append(f"{time.strftime('%X')}: {type(error).__name__} {error}")
                connection = None
            self.seconds.append(time.monotonic() - began)
            if connection and not keeps_connection:
                connection.close()
                connection = None

    def _redeliver(self, run, connection):
        """Returns the connection, if it can be used again."""
        key, is_reused = str(uuid.uuid4()), connection is not None
        if is_reused:
            try:
                return self._exchange(connection, run, key)
            except (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError):
                # The server has closed an idle connection. A client repeats the request on a new one; the key makes
                # that safe.
                connection.close()
                self.reopened += 1
        connection = http.client.HTTPConnection("127.0.0.1", self.service.endpoint(), timeout=TIMEOUT_SECONDS)
        return self._exchange(connection, run, key)

    def _exchange(self, connection, run, key):
        headers = {"Authorization": f"Bearer {self.token}", "Idempotency-Key": key}
        connection.request("POST", f"/v1/runs/{run}/callback-redeliveries", headers=headers)
        response = connection.getresponse()
        body = response.read()
        assert response.status == 201, f"{response.status} {body[:300]}"
        self.accepted[json.loads(body)["id"]] = run
        return connection if connection.sock else None
