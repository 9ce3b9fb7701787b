"""An installation of its own: a temporary database and queue, an api, dispatchers and receivers."""

import json
import os
import re
import shlex
import subprocess
import urllib.parse

import pika

from .catalogue import ROOT
from .process import Process, free_port, wait_for
from .proxy import Proxy

TIMEOUT_SECONDS = 2  # of an attempt; a lease is twice as long
SETTINGS = {
    "REDIAL_DELIVERY__TIMEOUT": f"{TIMEOUT_SECONDS}s",
    "REDIAL_DELIVERY__CONNECT_TIMEOUT": "1s",
    "REDIAL_DELIVERY__LEASE": f"{2 * TIMEOUT_SECONDS}s",
    "REDIAL_DELIVERY__SCHEDULE": "1s, 2s, 4s",
    "REDIAL_DELIVERY__MAX_ATTEMPTS": "4",
    "REDIAL_DELIVERY__STOP_ON_GONE": "true",
    "REDIAL_DISPATCHER__MAX_IN_FLIGHT": "32",
    "REDIAL_EGRESS__ALLOW": "127.0.0.1/32",
    "REDIAL_SECRETS__KEYS": "main:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=",
    "REDIAL_LOG__FORMAT": "json",
}
# A destination is a host and a port: each kind of receiver gets its own.
RECEIVERS = ("healthy", "failing", "hanging", "silent", "pausing", "gone")


class Installation:
    """Everything has unique names or ports; `close` removes it all."""

    def __init__(self, binary, directory, dispatchers=2):
        exports = subprocess.run(["scripts/services"], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout
        urls = dict(word.split("=", 1) for word in shlex.split(exports)[1:])
        self.server, self.broker = urls["DATABASE_URL"], urls["AMQP_URL"]
        self.name = f"redial_observe_{os.getpid()}"
        self.database = re.sub(r"^([a-z]+://[^/?]*)(/[^?]*)?", rf"\g<1>/{self.name}", self.server)
        self.binary, self.directory = binary, directory
        self.processes = []
        self._sql(self.server, f"CREATE DATABASE {self.name}")
        try:
            self._start(dispatchers)
        except BaseException:
            self.close()
            raise

    def _start(self, dispatchers):
        broker = urllib.parse.urlsplit(self.broker)
        self.proxy = Proxy(broker.hostname, broker.port or 5672)
        login = broker.netloc.rpartition("@")[0]
        own = broker._replace(netloc=f"{login}@127.0.0.1:{self.proxy.port}").geturl()
        self.environment = {
            **os.environ,
            **SETTINGS,
            "REDIAL_DATABASE__URL": self.database,
            "REDIAL_BROKER__URL": own,
            "REDIAL_BROKER__QUEUE": self.name,
        }
        self._redial("migrate")
        org = self._redial("org", "create", "observed")
        self.token = self._redial("token", "create", "--org", org)
        self._redial("secret", "create", "--org", org)

        self.receivers = {name: f"127.0.0.1:{free_port()}" for name in RECEIVERS}
        for name, address in self.receivers.items():
            self._process(f"receiver-{name}", ["listen", address]).start()
        self.receivers["refusing"] = f"127.0.0.1:{free_port()}"

        self.api_port = free_port()
        self.api = self._service("api", REDIAL_API__LISTEN=f"127.0.0.1:{self.api_port}")
        self.dispatchers = [self._service("dispatcher", f"-{number + 1}") for number in range(dispatchers)]
        for service in [self.api, *self.dispatchers]:
            service.start()
        for service in [self.api, *self.dispatchers]:
            wait_for(f"{service.name} serves metrics", lambda service=service: self._serves(service), 30)

    def _service(self, command, suffix="", **settings):
        metrics = f"127.0.0.1:{free_port()}"
        process = self._process(command + suffix, [command], REDIAL_METRICS__LISTEN=metrics, **settings)
        process.metrics = metrics
        return process

    def _serves(self, service):
        service.check()
        lines = [json.loads(line) for line in service.log.read_text().splitlines() if line.startswith("{")]
        return any(line["message"] == "serving metrics" for line in lines)

    def _process(self, name, arguments, **settings):
        process = Process(name, [self.binary, *arguments], self.directory, {**self.environment, **settings})
        self.processes.append(process)
        return process

    def _redial(self, *arguments):
        command = [self.binary, *arguments]
        return subprocess.run(
            command, env=self.environment, check=True, stdout=subprocess.PIPE, text=True
        ).stdout.strip()

    def _sql(self, url, statement):
        command = ["psql", "-qtAXw", url, "-v", "ON_ERROR_STOP=1", "-c", statement]
        return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()

    def sql(self, statement):
        """Executes a statement in the installation's database, and returns what it prints."""
        return self._sql(self.database, statement)

    def hold(self, statement):
        """Executes a statement in a transaction that stays open. Returns a function that ends it."""
        psql = subprocess.Popen(
            ["psql", "-qtAXw", self.database, "-v", "ON_ERROR_STOP=1"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            process_group=0,
        )
        psql.stdin.write(f"BEGIN;\n{statement};\n\\echo held\n")
        psql.stdin.flush()
        for line in psql.stdout:
            if line == "held\n":
                break

        def release():
            psql.communicate("ROLLBACK;\n")

        return release

    def cut_database(self):
        """Ends all sessions of the installation's processes."""
        self._sql(self.server, f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{self.name}'")

    @property
    def services(self):
        """The processes that serve metrics."""
        return [self.api, *self.dispatchers]

    def check(self):
        """Failed if a process has ended by itself."""
        for process in self.processes:
            process.check()

    def close(self):
        """Stops the processes, and removes the database and the queue."""
        for process in reversed(self.processes):
            process.stop()
        self._sql(self.server, f"DROP DATABASE IF EXISTS {self.name} WITH (FORCE)")
        with pika.BlockingConnection(pika.URLParameters(self.broker)) as connection:
            for queue in (self.name, f"{self.name}.parked"):
                connection.channel().queue_delete(queue)
