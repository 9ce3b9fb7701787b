"""Processes, free ports, and waiting for conditions."""

import signal
import socket
import subprocess
import time


class Failed(Exception):
    """What a run failed for."""


def wait_for(what, condition, seconds):
    """Waits until `condition` returns something true, and returns it. Failed after `seconds`."""
    deadline = time.monotonic() + seconds
    while True:
        found = condition()
        if found:
            return found
        if time.monotonic() > deadline:
            raise Failed(f"after {seconds} s still not: {what}")
        time.sleep(0.2)


def free_port():
    """Returns a port of 127.0.0.1 that is free now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Process:
    """A process whose output goes to a file. It can be stopped and started again with the same command."""

    def __init__(self, name, command, directory, environment=None):
        self.name, self.command, self.environment = name, [str(word) for word in command], environment
        self.log = directory / f"{name}.log"
        self.child = None

    def start(self):
        with self.log.open("ab") as log:
            # A group of its own: an interrupt of the terminal is handled here, in order.
            self.child = subprocess.Popen(
                self.command, env=self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, process_group=0
            )
        return self

    def check(self):
        """Failed if the process has ended by itself."""
        if self.child and self.child.poll() is not None:
            raise Failed(f"{self.name} ended with status {self.child.returncode}:\n{self.log.read_text()[-2000:]}")

    def stop(self, number=signal.SIGTERM, seconds=40):
        """Stops the process, by SIGKILL if it has not ended after `seconds`. Returns its status."""
        child, self.child = self.child, None
        if child is None:
            return None
        child.send_signal(number)
        try:
            return child.wait(seconds)
        except subprocess.TimeoutExpired:
            child.kill()
            return child.wait()
