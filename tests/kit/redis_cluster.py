"""A real Redis Cluster of Valkey processes: the gateway's slot, and who holds it, in the hands of the test."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from redis import Redis
from redis.exceptions import RedisError

from app.embedded import Account, valkey_binary
from app.redis_cluster import SLOT
from tests.kit.processes import free_port

PASSWORD = "cluster-password-of-the-tests"
READY_S = 30.0


class Node:
    def __init__(self, folder: Path) -> None:
        self.port, self._bus_port = free_port(), free_port()
        self.client = Redis(host="127.0.0.1", port=self.port, password=PASSWORD, socket_timeout=5)
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self.id = ""

    def start(self) -> None:
        self._folder.mkdir()
        arguments = {
            "port": self.port, "cluster-port": self._bus_port, "bind": "127.0.0.1", "dir": self._folder, "save": "",
            "requirepass": PASSWORD, "masterauth": PASSWORD, "cluster-enabled": "yes", "cluster-node-timeout": 1000,
            "cluster-require-full-coverage": "no", "cluster-replica-validity-factor": 0,
        }  # fmt: skip
        command = [str(valkey_binary(Account(os.getuid(), os.getgid(), switch=False)))]
        for name, value in arguments.items():
            command += [f"--{name}", str(value)]
        with (self._folder / "log").open("wb") as log:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)
            self._process = None

    def ask(self, *command: Any) -> Any:
        return self.client.execute_command(*command)  # type: ignore[no-untyped-call]

    def meet(self, other: Node) -> None:
        self.ask("CLUSTER", "MEET", "127.0.0.1", other.port, other._bus_port)

    def told(self) -> list[int]:
        """The ports of those that hold our slot, as this node knows it: the master, and its replicas."""
        for first, last, *nodes in self.ask("CLUSTER", "SLOTS"):
            if first <= SLOT <= last:
                return [node[1] for node in nodes]
        return []


class RedisCluster:
    """Two masters, of which the second holds our slot, and a replica of that one."""

    def __init__(self) -> None:
        self._home = tempfile.TemporaryDirectory(prefix="gateway-redis-cluster-")
        self.other, self.holder, self.replica = (Node(Path(self._home.name) / name) for name in ("a", "b", "c"))

    @property
    def nodes(self) -> tuple[Node, ...]:
        return self.other, self.holder, self.replica

    @property
    def url(self) -> str:
        """It names a node that does not exist, and one that does not hold the slot."""
        return f"redis://:{PASSWORD}@127.0.0.1:1,127.0.0.1:{self.other.port}"

    def __enter__(self) -> Self:
        try:
            self._join()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def _join(self) -> None:
        for node in self.nodes:
            node.start()
        for node in self.nodes:
            node.id = _patiently(node, "CLUSTER", "MYID").decode()
        _patiently(self.other, "CLUSTER", "ADDSLOTSRANGE", 0, SLOT - 1, SLOT + 1, 16383)
        _patiently(self.holder, "CLUSTER", "ADDSLOTS", SLOT)
        for node in (self.holder, self.replica):
            self.other.meet(node)
        _patiently(self.replica, "CLUSTER", "REPLICATE", self.holder.id)
        deadline_s = time.monotonic() + READY_S
        while any(node.told() != [self.holder.port, self.replica.port] for node in self.nodes):
            assert time.monotonic() < deadline_s, "the cluster does not come together"
            time.sleep(0.05)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for node in self.nodes:
            node.kill()
            node.client.close()
        self._home.cleanup()


def _patiently(node: Node, *command: Any) -> Any:
    """Ask until the node has come up, and knows whom it is asked about."""
    deadline_s = time.monotonic() + READY_S
    while True:
        try:
            return node.ask(*command)
        except (RedisError, OSError):
            if time.monotonic() > deadline_s:
                raise
            time.sleep(0.05)
