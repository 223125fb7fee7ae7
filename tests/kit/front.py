"""The shipped nginx, run for real: the files of deploy/nginx as they are, but for addresses and places."""

from __future__ import annotations

from collections.abc import Sequence

from tests.kit.clients import REPO_ROOT
from tests.kit.processes import Nginx, free_port

SHIPPED = REPO_ROOT / "deploy" / "nginx"


class Front(Nginx):
    """nginx before these gateways. `port` is the public listener, `internal_port` the internal one."""

    def __init__(
        self,
        gateway_ports: Sequence[int],
        *,
        internal_networks: str | None = None,
        tls: str = "",
        patience_s: int | None = None,
    ) -> None:
        """`patience_s`: for the gateways' next word, in place of ten minutes."""
        self.internal_port = free_port()
        self.tls_port = free_port()
        public = free_port()
        files = {path.name: path.read_text() for path in SHIPPED.iterdir() if path.name != "nginx.conf"}
        files["upstream.conf"] = _upstream(files["upstream.conf"], gateway_ports)
        if patience_s is not None:
            files["proxy.conf"] = files["proxy.conf"].replace("read_timeout 630s", f"read_timeout {patience_s}s")
        if internal_networks is not None:
            files["internal-networks.conf"] = internal_networks
        if tls:
            files["tls.conf"] = tls.replace("8443", str(self.tls_port))
        config = (SHIPPED / "nginx.conf").read_text()
        for shipped, own in (
            ("listen 8080 ", f"listen 127.0.0.1:{public} "),
            ("listen 8081 ", f"listen 127.0.0.1:{self.internal_port} "),
            ("pid /tmp/", "pid @DIR@/"),
            ("_path /tmp/", "_path @DIR@/"),
            ("access_log /dev/stdout json", "access_log @DIR@/logs/access.log json"),
            ("error_log stderr crit", "error_log @DIR@/logs/error.log crit"),
            ("worker_processes auto", "worker_processes 2"),
            ("worker_rlimit_nofile 65536;", ""),
        ):
            if shipped not in config:
                raise ValueError(f"nginx.conf has no '{shipped}' any more")
            config = config.replace(shipped, own)
        super().__init__(config, port=public, files=files)


def _upstream(shipped: str, ports: Sequence[int]) -> str:
    """The shipped group of gateways, with addresses in the place of the name that Docker resolves."""
    lines = []
    for line in shipped.splitlines():
        if line.startswith("resolver "):
            continue
        if line.strip().startswith("server gateway:8000 resolve"):
            options = line.split("resolve", 1)[1]
            lines += [f"    server 127.0.0.1:{port}{options}" for port in ports]
        else:
            lines.append(line)
    return "\n".join(lines)
