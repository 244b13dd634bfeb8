"""Workers of a cluster on this machine, for tests and measurements.

On a real cluster, another program sets TF_CONFIG and starts the same command on
each machine.
"""

import contextlib
import json
import os
import socket
import subprocess
import time


def start(commands, environment=None, **options):
    """Starts a process for each command; TF_CONFIG makes them a cluster.

    Args:
        commands: lists of arguments, the chief's first.
        environment: further variables of each process's environment.
        **options: options of `subprocess.Popen`.

    Returns:
        A list of `subprocess.Popen`, the chief first.
    """
    hosts = [f"127.0.0.1:{port}" for port in _free_ports(len(commands))]
    processes = []
    for index, command in enumerate(commands):
        task = {"type": "worker", "index": index}
        config = {"cluster": {"worker": hosts}, "task": task}
        variables = {"TF_CONFIG": json.dumps(config), **(environment or {})}
        processes.append(
            subprocess.Popen(command, env=os.environ | variables, **options)
        )
    return processes


def _free_ports(count):
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def wait(processes, seconds):
    """Waits for all processes, and kills the remaining ones.

    Args:
        processes: the result of `start`.
        seconds: the longest time to wait, in all.

    Returns:
        Their exit codes.

    Raises:
        subprocess.TimeoutExpired: if a process has not ended by then.
    """
    end = time.monotonic() + seconds
    try:
        return [p.wait(max(0.0, end - time.monotonic())) for p in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
