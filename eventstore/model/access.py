"""Who may do what: roles, what each permits, and the caller of a request as the store sees it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from eventstore.model.limits import Limits

__all__ = ["PERMISSIONS", "Permission", "Principal", "Role"]


class Role(StrEnum):
    """What a key, or a person's token, is for."""

    WRITER = "writer"
    READER = "reader"
    COMPLIANCE = "compliance"
    OPERATOR = "operator"
    ADMINISTRATOR = "administrator"


class Permission(StrEnum):
    """What a route asks for."""

    APPEND = "append"
    READ = "read"
    EXPORT = "export"
    HOLD = "hold"
    EXPLAIN = "explain"  # see policies, and why something is where it is
    OPERATE = "operate"  # change policies, and runs
    ADMINISTER = "administer"  # tenants and keys


PERMISSIONS: dict[Role, frozenset[Permission]] = {
    Role.WRITER: frozenset({Permission.APPEND}),
    Role.READER: frozenset({Permission.READ}),
    Role.COMPLIANCE: frozenset({Permission.READ, Permission.EXPORT, Permission.HOLD, Permission.EXPLAIN}),
    Role.OPERATOR: frozenset({Permission.OPERATE, Permission.EXPLAIN}),
    Role.ADMINISTRATOR: frozenset(Permission),
}


@dataclass(frozen=True, slots=True)
class Principal:
    """The caller of a request.

    `subject` names it in logs and in governance's record (`key:<prefix>`, `oidc:<subject>`, `loopback`).
    `tenant` None means the whole deployment. `person` says that a human being asks, whose reads are events.
    `limits` are its own; None: it has none at all (the administrator of the machine itself).
    """

    subject: str
    role: Role
    tenant: str | None = None
    person: bool = False
    limits: Limits | None = Limits()  # noqa: RUF009 - frozen

    def may(self, permission: Permission) -> bool:
        return permission in PERMISSIONS[self.role]

    def sees(self, tenant: str) -> bool:
        """Whether the tenant may so much as exist for this caller."""
        return self.tenant is None or self.tenant == tenant
