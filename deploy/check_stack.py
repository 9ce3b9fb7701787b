"""Delivers and redelivers through a running stack, stops one of its dispatchers under load, and compares the sample
receiver's output with the records. Run by scripts/test-containers; needs BASE_URL, TOKEN, and the containers RECEIVER
and DISPATCHER. Standard library only."""

import collections
import concurrent.futures
import json
import os
import subprocess
import time
import urllib.request
import uuid

RUNS = 400
IN_FLIGHT_SECONDS = 1  # delay of half of the responses, so that attempts are in flight at the stop
PATIENCE_SECONDS = 90
NEVER_OPENED = ["http://postgres:5432/", "http://rabbitmq:5672/", "http://api:8080/v1/health"]


def call(method, path, body=None):
    headers = {"Authorization": f"Bearer {os.environ['TOKEN']}", "Content-Type": "application/json"}
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(os.environ["BASE_URL"] + path, data, headers, method=method)
    with urllib.request.urlopen(request, timeout=30) as response:
        return json.load(response)


def record(callback_url):
    run_id = str(uuid.uuid4())
    output = {"text": f"für {run_id} 🎬", "cost": 1e-05}
    call("PUT", f"/v1/runs/{run_id}", {"status_code": "succeeded", "output": output, "callback_url": callback_url})
    return run_id


def redeliver(run_id):
    return call("POST", f"/v1/runs/{run_id}/callback-redeliveries")["id"]


def deliveries(run_id):
    return call("GET", f"/v1/runs/{run_id}/callback")


def completed(run_ids):
    """Waits for the end of the runs' deliveries; returns them."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    found, waiting = [], list(run_ids)
    while waiting:
        histories = dict(zip(waiting, pool.map(deliveries, waiting)))
        waiting = [run for run, history in histories.items() if any(not one["completed_at"] for one in history)]
        found += [one for run, history in histories.items() if run not in waiting for one in history]
        if waiting and time.monotonic() > deadline:
            stuck = [histories[run] for run in waiting]
            raise SystemExit(f"{len(stuck)} runs have open deliveries, such as {json.dumps(stuck[0], indent=1)}")
        time.sleep(0.2)
    return found


def docker(*arguments):
    command = ["docker", *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True).stdout


def log(container):
    return docker("logs", os.environ[container])


def fetches(container, url):
    """Whether a process in the container gets a 2xx from `url`."""
    return (
        subprocess.run(
            ["docker", "exec", os.environ[container], "redial", "healthcheck", url], capture_output=True
        ).returncode
        == 0
    )


def check_metrics():
    """The dispatcher answers /metrics in the network `metrics` only: the receiver has no way to it."""
    networks = json.loads(docker("inspect", "--format", "{{json .NetworkSettings.Networks}}", os.environ["DISPATCHER"]))
    urls = {name.rsplit("_", 1)[-1]: f"http://{one['IPAddress']}:9464/metrics" for name, one in networks.items()}
    assert fetches("DISPATCHER", urls["metrics"]), f"no metrics at {urls['metrics']}"
    for container, network in (
        ("DISPATCHER", "callbacks"),
        ("DISPATCHER", "backend"),
        ("RECEIVER", "callbacks"),
        ("RECEIVER", "metrics"),
    ):
        assert not fetches(container, urls[network]), f"{container} reaches {urls[network]}"
    print("metrics: answered in their own network only")


def arrivals():
    """Parses the receiver's output: per webhook-id, each callback as (body, verdict)."""
    found = collections.defaultdict(list)
    for callback in log("RECEIVER").split("POST /")[1:]:
        lines = [line.strip() for line in callback.splitlines()]
        webhook_id = next(line for line in lines if line.startswith("webhook-id: ")).split(": ")[1]
        body = next(line for line in lines if line.startswith("{"))
        verdict = next(line for line in lines if "; answered: " in line)
        found[webhook_id].append((body, verdict))
    return found


def check(history, count):
    """Checks that `count` deliveries succeeded at their first attempt, and each arrived once, as recorded."""
    assert len(history) == count, f"{len(history)} deliveries instead of {count}"
    arrived = arrivals()
    for delivery in history:
        about = json.dumps(delivery, indent=1)
        assert delivery["status_code"] == "succeeded" and delivery["failure_reason_code"] is None, about
        assert [attempt["status_code"] for attempt in delivery["attempts"]] == [200], about
        expected = [(delivery["payload_bytes"], "signatures valid; answered: 200")]
        assert arrived[delivery["id"]] == expected, f"{about}\narrived as {arrived[delivery['id']]}"


check_metrics()
pool = concurrent.futures.ThreadPoolExecutor(16)

blocked = [record(url) for url in NEVER_OPENED]
run = record("http://receiver:9090/ok")
check(completed([run]), 1)
redeliver(run)
check(completed([run]), 2)
print("one run: delivered, redelivered, verified")

urls = ["http://receiver:9090/ok", f"http://receiver:9090/hang/{IN_FLIGHT_SECONDS}"]
runs = list(pool.map(record, urls * (RUNS // 2)))
check(completed(runs), RUNS)
print(f"{RUNS} runs: delivered")

started = time.monotonic()
redelivering = [pool.submit(redeliver, run) for run in runs]
concurrent.futures.wait(redelivering[: RUNS // 2])
left = sum(not one.done() for one in redelivering)
assert left, "the load was over before a dispatcher could be stopped"
docker("stop", "-t", "30", os.environ["DISPATCHER"])
concurrent.futures.wait(redelivering)
check(completed(runs), 2 * RUNS)
seconds = time.monotonic() - started

exit_code = docker("inspect", "--format", "{{.State.ExitCode}}", os.environ["DISPATCHER"]).strip()
assert exit_code == "0", f"the stopped dispatcher ended with {exit_code}"
last_words = log("DISPATCHER").partition('"message":"stopping"')[2]
finished = last_words.count('"message":"attempt"')
assert finished, "the stopped dispatcher had nothing in flight"
assert "nothing left in flight" in last_words, "the stopped dispatcher did not finish its work"
print(f"{RUNS} redeliveries in {seconds:.1f} s, each arrived once; one dispatcher was stopped with {left} still to be")
print(f"asked for, and finished the {finished} it had in flight")

for run in blocked:
    delivery = deliveries(run)[0]
    # Looks as if the name did not resolve: a customer learns nothing of the internal network.
    assert delivery["failure_reason_code"] == "dns_error", json.dumps(delivery, indent=1)
print(f"never called: {', '.join(NEVER_OPENED)}")
