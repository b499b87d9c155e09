"""Who may do what, without a database: roles, the shape of keys, the rule of the machine itself, settings."""

from __future__ import annotations

import hashlib
import re

import pytest

from eventstore.access.authenticator import bearer_of
from eventstore.access.issuer import is_safe_url
from eventstore.access.loopback import is_from_here
from eventstore.api.access import check
from eventstore.errors import ForbiddenError, SetupError, TenantNotFoundError, UnauthenticatedError
from eventstore.model.access import PERMISSIONS, Permission, Principal, Role
from eventstore.model.apikey import ApiKey, KeyState, digest_of, is_key_id, key_id_of, new_key_text
from eventstore.settings import load_settings

# One letter for each permission, in the order of the enumeration.
TABLE = {
    Role.WRITER: "A......",
    Role.READER: ".R.....",
    Role.COMPLIANCE: ".REHX..",
    Role.OPERATOR: "....XO.",
    Role.ADMINISTRATOR: "AREHXOM",
}


@pytest.mark.parametrize("role", Role)
def test_what_each_role_permits(role: Role) -> None:
    assert PERMISSIONS.keys() == TABLE.keys() == set(Role)
    permitted = "".join(
        letter if Principal("x", role).may(permission) else "."
        for letter, permission in zip("AREHXOM", Permission, strict=True)
    )
    assert permitted == TABLE[role]


@pytest.mark.parametrize("role", Role)
def test_a_tenants_caller_is_told_of_no_other_tenant(role: Role) -> None:
    caller = Principal("x", role, "acme")
    for permission in Permission:
        told = []
        for tenant in ("rival", "never-was", "no slug", "a\0b"):
            with pytest.raises(TenantNotFoundError) as caught:
                check(caller, permission, tenant)
            told.append(str(caught.value).replace(repr(tenant), "T").replace(tenant, "T"))
        assert len(set(told)) == 1
        with pytest.raises(ForbiddenError):
            check(caller, permission, None)


@pytest.mark.parametrize("role", Role)
def test_a_role_is_asked_for_its_permission_alone(role: Role) -> None:
    for permission in Permission:
        for caller in (Principal("x", role), Principal("x", role, "acme")):
            if caller.may(permission):
                check(caller, permission, "acme")
            else:
                with pytest.raises(ForbiddenError):
                    check(caller, permission, "acme")


# --- keys ---------------------------------------------------------------------------------------------


def test_a_key_says_its_role_and_is_never_twice_the_same() -> None:
    made = [new_key_text(role) for role in Role for _ in range(50)]
    assert len({text for _, text in made}) == len({key_id for key_id, _ in made}) == 250
    for key_id, text in made:
        assert re.fullmatch(r"es_(\w+-[0-9a-z]{10})_[0-9a-z]{52}", text)
        assert key_id_of(text.encode()) == key_id
        assert is_key_id(key_id)
        assert digest_of(text.encode()) == hashlib.sha256(text.encode()).digest()
    for role, (key_id, _) in zip(Role, made[::50], strict=True):
        assert key_id.startswith(role.value)


def test_what_is_no_key() -> None:
    _, text = new_key_text(Role.READER)
    for wrong in ("", "es_", text[:-1], text + "0", text.upper(), f" {text}", text.replace("reader", "root")):
        assert key_id_of(wrong.encode()) is None
    assert key_id_of(text.encode() + b"\xff") is None


def test_a_key_ends_when_its_time_has_come() -> None:
    key = ApiKey("reader-0000000000", None, Role.READER, "", 0, "ann", expires_us=10)
    assert [key.state(us) for us in (0, 9, 10, 11)] == [KeyState.ACTIVE] * 2 + [KeyState.EXPIRED] * 2
    assert ApiKey("k", None, Role.READER, "", 0, "ann", None, revoked_us=5).state(1) is KeyState.REVOKED


def test_bearers() -> None:
    def of(*values: bytes) -> bytes | None:
        return bearer_of([(b"host", b"x"), *((b"authorization", value) for value in values)])

    assert of() is None
    assert of(b"Bearer k") == of(b"bearer  k ") == b"k"
    for wrong in ([b"Basic YTpi"], [b"k"], [b""], [b"Bearer"], [b"Bearer a", b"Bearer b"]):
        with pytest.raises(UnauthenticatedError):
            of(*wrong)


# --- the machine itself -------------------------------------------------------------------------------

LOCAL = {"host": "127.0.0.1:8080"}


@pytest.mark.parametrize("peer", ["127.0.0.1", "127.8.9.1", "::1", "::ffff:127.0.0.1"])
@pytest.mark.parametrize(
    "headers",
    [
        LOCAL,
        {"host": "localhost"},
        {"host": "LOCALHOST:80"},
        {"host": "[::1]:8080"},
        {"host": "[::1]"},
        {**LOCAL, "origin": "http://127.0.0.1:8080"},
        {**LOCAL, "sec-fetch-site": "same-origin"},
        {**LOCAL, "sec-fetch-site": "none"},
    ],
    ids=str,
)
def test_requests_of_this_machine(peer: str, headers: dict[str, str]) -> None:
    assert is_from_here(peer, [(n.encode(), v.encode()) for n, v in headers.items()])


@pytest.mark.parametrize(
    ("peer", "headers"),
    [
        ("192.168.1.9", LOCAL),
        ("0.0.0.0", LOCAL),
        ("::ffff:10.0.0.1", LOCAL),
        ("localhost.example", LOCAL),
        ("", LOCAL),
        (None, LOCAL),
        ("127.0.0.1", {}),
        *(
            ("127.0.0.1", {"host": host})
            for host in (
                "evil.example",
                "127.0.0.1.evil.example",
                "localhost.evil",
                "x@localhost",
                "[::1",
                "",
            )
        ),
        ("127.0.0.1", {**LOCAL, "x-forwarded-for": "127.0.0.1"}),
        ("127.0.0.1", {**LOCAL, "forwarded": "for=127.0.0.1"}),
        ("127.0.0.1", {**LOCAL, "x-real-ip": "::1"}),
        ("127.0.0.1", {**LOCAL, "via": "1.1 proxy"}),
        ("127.0.0.1", {**LOCAL, "origin": "https://evil.example"}),
        ("127.0.0.1", {**LOCAL, "origin": "http://127.0.0.1:3000"}),
        ("127.0.0.1", {**LOCAL, "origin": "null"}),
        ("127.0.0.1", {**LOCAL, "sec-fetch-site": "cross-site"}),
        ("127.0.0.1", {**LOCAL, "sec-fetch-site": "same-site"}),
    ],
    ids=str,
)
def test_requests_of_others_through_this_machine(peer: str | None, headers: dict[str, str]) -> None:
    assert not is_from_here(peer, [(n.encode(), v.encode()) for n, v in headers.items()])


def test_two_hosts_are_none() -> None:
    hosts = [(b"host", b"127.0.0.1"), (b"host", b"evil.example")]
    assert not is_from_here("127.0.0.1", hosts)
    assert not is_from_here("127.0.0.1", hosts[::-1])


# --- settings -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "values",
    [
        {"ISSUER": "https://sso.example"},
        {"AUDIENCE": "eventstore"},
        {"ISSUER": "https://sso.example", "AUDIENCE": ""},
        {"ISSUER": "http://sso.example", "AUDIENCE": "eventstore"},
        {"ISSUER": "sso.example", "AUDIENCE": "eventstore"},
        {"JWKS_URL": "https://sso.example/keys"},
        {"ROLES": '{"staff": "reader"}'},
        {"ISSUER": "https://sso.example", "AUDIENCE": "es", "ROLES": '{"staff": "root"}'},
        {"ISSUER": "https://sso.example", "AUDIENCE": "es", "JWKS_URL": "http://sso.example/keys"},
        {"ISSUER": "https://sso.example", "AUDIENCE": "es", "ROLE_CLAIM": "a", "TENANT_CLAIM": "a"},
    ],
    ids=lambda values: "+".join(values),
)
def test_settings_that_contradict_are_refused(
    values: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in values.items():
        monkeypatch.setenv(f"EVENTSTORE_OIDC_{name}", value)
    with pytest.raises(SetupError, match="EVENTSTORE_OIDC_"):
        load_settings()


def test_settings_of_an_issuer(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_settings().oidc is None
    given = {"ISSUER": "https://sso.example", "AUDIENCE": "es", "ROLES": '{"staff": "reader"}'}
    for name, value in given.items():
        monkeypatch.setenv(f"EVENTSTORE_OIDC_{name}", value)
    oidc = load_settings().oidc
    assert oidc is not None
    assert (oidc.issuer, oidc.audience, dict(oidc.roles)) == (
        "https://sso.example",
        "es",
        {"staff": Role.READER},
    )
    assert (oidc.role_claim, oidc.tenant_claim) == ("eventstore_role", "eventstore_tenant")


def test_addresses_that_are_trusted() -> None:
    for url in ("https://a.example/x", "http://127.0.0.1:80", "http://localhost/x", "http://[::1]:9/"):
        assert is_safe_url(url)
    for url in (
        "http://a.example",
        "file:///etc/passwd",
        "https://",
        "ftp://localhost",
        "//x",
        "https://[",
        "",
    ):
        assert not is_safe_url(url)
