"""A real Prometheus and Alertmanager, configured with the files of deploy/prometheus."""

import http.server
import json
import re
import shutil
import threading
import urllib.error
import urllib.parse
import urllib.request

import yaml

from .catalogue import ROOT
from .process import Failed, Process, free_port, wait_for

FOLDER = ROOT / "deploy/prometheus"
INTERVAL = "1s"  # of scrapes and evaluations
FACTOR = 12  # by which the alerts' `for` is shorter
UNITS = {"s": 1, "m": 60, "h": 3600}
CHANGES = f"""\
Changed in the copies of deploy/prometheus/*.yml that run here, to take minutes rather than hours:
  scrape_interval, evaluation_interval: {INTERVAL}; dns_sd_configs and alertmanagers: addresses of this machine
  `for` of each alert: divided by {FACTOR} (2m is {120 // FACTOR} s). Expressions, thresholds and ranges: unchanged
  Alertmanager's group_wait and group_interval: {INTERVAL}; its receivers call this script"""


class Monitoring:
    """Prometheus scrapes `targets`, and Alertmanager notifies this process. Both listen on 127.0.0.1."""

    def __init__(self, directory, targets):
        self.url, alertmanager = f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"
        self.alertmanager = f"http://{alertmanager}"
        self.notifications = _Notifications()
        self._render(directory, targets, alertmanager)
        self.processes = [
            Process(
                "prometheus",
                [
                    "prometheus",
                    f"--web.listen-address={self.url}",
                    f"--config.file={directory}/prometheus.yml",
                    f"--storage.tsdb.path={directory}/prometheus",
                ],
                directory,
            ),
            Process(
                "alertmanager",
                [
                    shutil.which("prometheus-alertmanager") or "alertmanager",  # Debian's name, and its own
                    f"--web.listen-address={alertmanager}",
                    "--cluster.listen-address=",
                    f"--config.file={directory}/alertmanager.yml",
                    f"--storage.path={directory}/alertmanager",
                ],
                directory,
            ),
        ]
        self.url = f"http://{self.url}"
        for process in self.processes:
            process.start()
        try:
            for process, url in zip(self.processes, (self.url, self.alertmanager)):
                wait_for(f"{process.name} is ready", lambda process=process, url=url: _is_ready(process, url), 30)
        except BaseException:
            self.close()
            raise

    def _render(self, directory, targets, alertmanager):
        config = yaml.safe_load((FOLDER / "prometheus.yml").read_text())
        config["global"] = {"scrape_interval": INTERVAL, "evaluation_interval": INTERVAL}
        (job,) = config["scrape_configs"]
        del job["dns_sd_configs"]
        job["static_configs"] = [{"targets": targets}]
        (one,) = config["alerting"]["alertmanagers"]
        one["static_configs"] = [{"targets": [alertmanager]}]
        (directory / "prometheus.yml").write_text(yaml.safe_dump(config))

        alerts = yaml.safe_load((FOLDER / "alerts.yml").read_text())
        for group in alerts["groups"]:
            for rule in group["rules"]:
                rule["for"] = f"{seconds(rule['for']) / FACTOR * 1000:.0f}ms"
        (directory / "alerts.yml").write_text(yaml.safe_dump(alerts))

        routes = yaml.safe_load((FOLDER / "alertmanager.yml").read_text())
        for route in [routes["route"], *routes["route"].get("routes", [])]:
            route["group_wait"] = route["group_interval"] = INTERVAL
        for receiver in routes["receivers"]:
            url = f"http://127.0.0.1:{self.notifications.port}/{receiver['name']}"
            receiver["webhook_configs"] = [{"url": url, "send_resolved": True}]
        (directory / "alertmanager.yml").write_text(yaml.safe_dump(routes))

    def get(self, path, **parameters):
        """Returns the data of an answer of Prometheus' HTTP API. Failed if it is an error."""
        url = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(parameters, doseq=True)}"
        try:
            with urllib.request.urlopen(url, timeout=30) as response:
                answer = json.load(response)
        except urllib.error.HTTPError as error:
            raise Failed(f"Prometheus refuses {url}: {error.read().decode()}") from error
        return answer["data"]

    def query(self, expression):
        """Returns the series of an instant query: their labels and values."""
        return [(one["metric"], float(one["value"][1])) for one in self.get("query", query=expression)["result"]]

    def query_range(self, expression, start, end, step):
        """Returns the series of a range query: their labels, and pairs of time and value."""
        result = self.get("query_range", query=expression, start=start, end=end, step=step)["result"]
        return [(one["metric"], [(at, float(value)) for at, value in one["values"]]) for one in result]

    def firing(self):
        """Returns the alerts that Alertmanager has, by name: whether each is suppressed by another one."""
        with urllib.request.urlopen(f"{self.alertmanager}/api/v2/alerts", timeout=30) as response:
            return {alert["labels"]["alertname"]: bool(alert["status"]["inhibitedBy"]) for alert in json.load(response)}

    def check(self):
        for process in self.processes:
            process.check()

    def close(self):
        for process in self.processes:
            process.stop()
        self.notifications.close()


class _Notifications:
    """What Alertmanager has sent: (receiver, alert, status) in order."""

    def __init__(self):
        self.seen = []
        notifications = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                for alert in body["alerts"]:
                    notifications.seen.append((self.path[1:], alert["labels"]["alertname"], alert["status"]))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_):
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self):
        self._server.shutdown()


def _is_ready(process, url):
    process.check()
    try:
        with urllib.request.urlopen(f"{url}/-/ready", timeout=5):
            return True
    except OSError:
        return False


def seconds(duration):
    """Returns the seconds of a duration of Prometheus, such as 1h30m."""
    return sum(int(number) * UNITS[unit] for number, unit in re.findall(r"(\d+)([smh])", duration))
