"""Devices as processes of their own, on Flower's node protocol, ready in a moment.

A process that has imported what a client needs forks one for each device, so that a device can be
killed by its pid but need not import torch. A device beats every second, and is away after two.

``device_processes.py devices PORT`` reads lines ``partition delay`` from standard input, starts a
device for each, and writes the device's pid. ``delay`` is what the device waits before it trains or
evaluates. ``device_processes.py flower-superlink ...`` is Flower's command, which else takes no
interval below ten seconds.
"""

import os
import subprocess
import sys
import time
from pathlib import Path

#: Seconds that a device announces as its interval; the SuperLink waits for two. Flower's: 30.
INTERVAL = 2.0


class Devices:
    """The process that starts devices; all end with it.

    Parameters
    ----------
    port : int
        Of the SuperLink on this machine.
    log : Path
        Where what devices say goes.
    environment : mapping
        Of the processes.
    """

    def __init__(self, port, log, environment):
        self._log = log.open("ab")
        self._process = subprocess.Popen(
            [sys.executable, __file__, "devices", str(port)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            bufsize=1,
            env=environment,
        )

    def start(self, partition, delay=0.0):
        """Start a device; return its pid."""
        self._process.stdin.write(f"{partition} {delay}\n")
        return int(self._process.stdout.readline())

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._process.stdin.close()
        self._process.wait(timeout=60)
        self._process.stdout.close()
        self._log.close()


def serve(port):
    """Start devices as standard input says; end them when it ends."""
    from flwr.supercore import heartbeat
    from flwr.supernode import fleet_http_connection

    fleet_http_connection.HEARTBEAT_DEFAULT_INTERVAL = INTERVAL
    heartbeat.HEARTBEAT_DEFAULT_INTERVAL = INTERVAL
    heartbeat.HEARTBEAT_CALL_TIMEOUT = INTERVAL / 2
    pids = []
    for line in sys.stdin:
        partition, delay = line.split()
        if not (pid := os.fork()):
            device(port, int(partition), float(delay))
            os._exit(0)
        pids.append(pid)
        print(pid, flush=True)
    for pid in pids:
        try:
            os.kill(pid, 9)
        except ProcessLookupError:
            continue
    for pid in pids:
        os.waitpid(pid, 0)


def device(port, partition, delay):
    """Be a device until killed; a SIGTERM signs it off, as it does a SuperNode."""
    import signal

    from flwr.supercore.task_identity import TaskIdentity  # where Message(...) has its source from
    from flwr.supernode.fleet_http_connection import http_request_response

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    contexts = {}
    with http_request_response(f"127.0.0.1:{port}", insecure=True) as connection:
        node_id, receive, send, get_run, _, pull_object, push_object, confirm = connection
        print(f"partition {partition}: node {node_id}", file=sys.stderr, flush=True)
        TaskIdentity.node_id = node_id
        while True:
            if (received := receive()) is None:
                time.sleep(0.1)
                continue
            message = _pull(received, pull_object, confirm)
            run_id = message.metadata.run_id
            if run_id not in contexts:
                contexts[run_id] = _context(get_run(run_id), node_id, partition)
            TaskIdentity.run_id = run_id
            if message.metadata.message_type != "query":
                print(f"partition {partition} trains", file=sys.stderr, flush=True)
                time.sleep(delay)
            _push(_report(message, contexts[run_id]), send, push_object)


def _context(run, node_id, partition):
    from flwr.app import Context, RecordDict

    from mest_fed.config import RunConfig, to_flat

    config = to_flat(RunConfig()) | dict(run.override_config)
    node = {"partition-id": partition, "device": "rpi-4"}
    return Context(run.run_id, node_id, node, RecordDict(), config)


def _report(message, context):
    from flwr.app import Error, Message

    from mest_fed.client.app import app

    try:
        return app(message, context)
    except Exception as error:
        return Message(Error(2, str(error)), reply_to=message)


def _pull(received, pull_object, confirm):
    from flwr.supercore.inflatable.inflatable_object import iterate_object_tree
    from flwr.supercore.inflatable.inflatable_utils import (
        inflate_object_from_contents,
        pull_objects,
    )

    envelope, tree = received
    run_id, name = envelope.metadata.run_id, envelope.metadata.message_id
    ids = [each.object_id for each in iterate_object_tree(tree)]
    objects = pull_objects(ids, pull_object_fn=lambda i: pull_object(run_id, i))
    message = inflate_object_from_contents(name, objects)
    message.metadata.__dict__["_message_id"] = name
    confirm(run_id, name)
    return message


def _push(reply, send, push_object):
    from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree

    reply.metadata.__dict__["_message_id"] = reply.object_id
    objects = get_all_nested_objects(reply)
    wanted, session = send(reply, get_object_tree(reply), 0.0)
    for name, part in objects.items():
        if name in wanted:
            push_object(reply.metadata.run_id, session, name, part.deflate())


def superlink():
    """Be Flower's SuperLink."""
    from flwr.superlink.cli import flower_superlink
    from flwr.superlink.servicer.fleet import fleet_handlers

    fleet_handlers.HEARTBEAT_MIN_INTERVAL = INTERVAL
    flower_superlink()


if __name__ == "__main__":
    del sys.argv[0]
    if sys.argv[0] == "devices":
        sys.path.insert(0, str(Path(__file__).parents[2]))
        serve(int(sys.argv[1]))
    else:
        superlink()
