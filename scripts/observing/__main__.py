"""See scripts/observe."""

import argparse
import contextlib
import shutil
import signal
import sys
import threading
import time
from pathlib import Path

from . import live, picture
from .installation import Installation
from .load import Faults, Load
from .monitoring import CHANGES, Monitoring
from .process import Failed


def arguments():
    parser = argparse.ArgumentParser(prog="scripts/observe")
    parser.add_argument("--keep", action="store_true", help="leave everything running until interrupted")
    parser.add_argument("--picture", type=Path, metavar="FILE.svg", help="draw the overview of this run")
    parser.add_argument("--binary", type=Path, required=True, help=argparse.SUPPRESS)
    parser.add_argument("--directory", type=Path, required=True, help=argparse.SUPPRESS)
    return parser.parse_args()


def say(line):
    print(line, flush=True)


def observe(options, directory):
    began = time.time()
    installation = Installation(options.binary, directory)
    closing = [installation]
    try:
        monitoring = Monitoring(directory, [one.metrics for one in installation.services])
        closing.append(monitoring)
        say(f"An installation with database and queue {installation.name}; logs in {directory}")
        say(f"Prometheus {monitoring.url}, Alertmanager {monitoring.alertmanager}\n{CHANGES}")
        load = Load(installation)

        def check():
            installation.check()
            monitoring.check()
            load.check()

        say("\nLoad with failures")
        faults = Faults(installation, monitoring, check)
        if options.picture:
            faults.calm(60)
        faults.run(say)
        say("Metrics, dashboards, rules")
        live.metrics(installation, say)
        live.queries(monitoring, say)
        live.rules(monitoring, say)
        say("Alerts")
        live.alerts(installation, monitoring, check, say)
        say(f"Responses: {', '.join(f'{count} × {status}' for status, count in sorted(load.statuses.items()))}")
        if options.picture:
            faults.calm(30)
            picture.draw(monitoring, began, time.time(), options.picture)
            say(f"{options.picture} is drawn")
        if options.keep:
            say(f"\nStill running, under load: {monitoring.url}, {monitoring.alertmanager}; Ctrl-C removes it all")
            with contextlib.suppress(KeyboardInterrupt):
                threading.Event().wait()
        load.stop()
        load.check()
    finally:
        for one in reversed(closing):
            one.close()


def main():
    options = arguments()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(143))
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where a shell started this in the background
    began = time.monotonic()
    try:
        shutil.rmtree(options.directory, ignore_errors=True)
        options.directory.mkdir(parents=True)
        observe(options, options.directory)
    except Failed as error:
        sys.exit(f"observe: {error}")
    except KeyboardInterrupt:
        sys.exit("observe: interrupted")
    say(f"observe: passed in {time.monotonic() - began:.0f} s")


main()
