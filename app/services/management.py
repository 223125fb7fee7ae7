"""Administration: every command that changes what the gateway is configured to do.

One command is one transaction, in this order:

1. take the revision's row, so that commands run one after the other and each sees the one before;
2. read what is there, build the new spec from it, check the whole of it;
3. write it, and write the audit row with the spec before and after (specs hold no secrets);
4. raise the revision once per changed object, with a row that says which;
5. commit; only then tell the other processes (they also poll, so a lost message costs a second, not the change).

An exception anywhere before 5 leaves nothing. Commands stand here by kind of object: `users`, `keys`, `apps`, `models`,
`endpoints`, `admins`.
"""

from __future__ import annotations

from dataclasses import dataclass

from app.clock import Clock
from app.domain.egress import EgressPolicy
from app.services.command import Commands, Publish
from app.services.manage_access import AdminCommands, AppCommands, KeyCommands
from app.services.manage_catalog import EndpointCommands, ModelCommands
from app.services.manage_imports import ImportCommands
from app.services.manage_users import NO_DEFAULTS, UserCommands
from app.services.secret_key import SecretKeyCommands, SecretKeys
from app.storage.management_ports import ManagementStore, Sealer, UserSpec


@dataclass(frozen=True, slots=True)
class Management:
    """All admin commands, by kind of object."""

    users: UserCommands
    keys: KeyCommands
    apps: AppCommands
    models: ModelCommands
    endpoints: EndpointCommands
    admins: AdminCommands
    secret_key: SecretKeyCommands
    imports: ImportCommands


def open_management(
    store: ManagementStore,
    *,
    clock: Clock,
    publish: Publish,
    pepper: bytes,
    sealer: Sealer,
    secret_keys: SecretKeys,
    egress: EgressPolicy,
    has_bootstrap_token: bool,
    default_user: UserSpec = NO_DEFAULTS,
    older_peppers: tuple[bytes, ...] = (),
) -> Management:
    """Wire the commands. `publish(revision, kind, ref)` tells other processes of a committed change and may fail."""
    commands = Commands(store, clock, publish)
    return Management(
        users=UserCommands(commands, default_user),
        keys=KeyCommands(commands, pepper),
        apps=AppCommands(commands, pepper),
        models=ModelCommands(commands),
        endpoints=EndpointCommands(commands, sealer, egress),
        admins=AdminCommands(commands, pepper, has_bootstrap_token),
        secret_key=SecretKeyCommands(commands, sealer, secret_keys),
        imports=ImportCommands(commands, (pepper, *older_peppers)),
    )
