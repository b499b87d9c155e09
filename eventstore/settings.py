"""Settings: one frozen object from the environment (`EVENTSTORE_*`). No other part reads the environment."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from eventstore.access.issuer import OidcClient, OidcConfig, is_safe_url
from eventstore.errors import InputError, SetupError
from eventstore.integrity.places import check_destination
from eventstore.model.access import Role
from eventstore.model.limits import ARCHIVE_BYTES_PER_DAY_MAX, FEEDS_MAX, REQUESTS_PER_S_MAX, Limits
from eventstore.model.policy import DEFAULT_TARGET, parse_duration_us
from eventstore.model.schedule import parse_schedule

__all__ = ["Settings", "load_settings"]


def _duration(text: str) -> str:
    try:
        parse_duration_us(text)
    except InputError as e:
        raise ValueError(str(e)) from e
    return text


def _schedule(text: str) -> str:
    try:
        parse_schedule(text)
    except InputError as e:
        raise ValueError(str(e)) from e
    return text


def _place(text: str) -> str:
    try:
        check_destination(text)
    except InputError as e:
        raise ValueError(str(e)) from e
    if "{tenant}" not in text:
        raise ValueError(f"write {{tenant}} into {text!r}: each log has a checkpoint of its own")
    return text


def _issuer_url(text: str) -> str:
    if not is_safe_url(text):
        raise ValueError(f"{text!r} is no https address (http is taken on this machine alone)")
    return text


IssuerUrl = Annotated[str, AfterValidator(_issuer_url)]
Duration = Annotated[str, AfterValidator(_duration)]
Schedule = Annotated[str, AfterValidator(_schedule)]
Place = Annotated[str, AfterValidator(_place)]


_ORIGIN = re.compile(r"https?://[A-Za-z0-9.\[\]:-]+")


class Settings(BaseSettings):
    """Where the store keeps things, and its limits."""

    model_config = SettingsConfigDict(env_prefix="EVENTSTORE_", frozen=True, extra="ignore")

    database_url: str | None = Field(
        None,
        description="A Postgres server (15 or later), as postgresql://user:password@host/database. "
        "Without it, an embedded one runs under the home.",
    )
    app_database_url: str | None = Field(
        None,
        description="The same database for the application's own login, a member of the role eventstore_app "
        "that owns nothing. Without it, EVENTSTORE_DATABASE_URL's login takes on that role by itself.",
    )
    home: Path = Field(Path(".eventstore"), description="Folder of the embedded Postgres and the archive.")
    archive_url: str | None = Field(
        None,
        description="The archive target named `archive`, where windows go unless a policy says otherwise: "
        "file://, s3://, gs://, az://. file://<home>/archive unless set.",
    )
    targets: dict[str, str] = Field(
        default_factory=dict,
        description="Further archive targets for the tiers of policies, as a JSON object of names and URLs, "
        'e.g. {"deep": "s3://bucket/deep"}.',
    )
    signing_key_file: Path | None = Field(
        None,
        description="The Ed25519 key that signs certificates, as PEM; <home>/keys/signing.pem unless set, "
        "made at the first start. All processes of a deployment need the same.",
    )
    cache_bytes_max: int = Field(
        4 * 2**30,
        ge=0,
        description="How much of the home's cache folder segments of remote targets may take, in bytes.",
    )
    policy_grace: Duration = Field(
        "7d",
        description="How long after its confirmation a policy change that destroys sooner comes into force.",
    )
    expiry_notice: Duration = Field(
        "1d",
        description="How long after it was first listed as expired a window is destroyed by the scheduler.",
    )
    runs_kept: Duration = Field(
        "400d",
        description="How long runs and their journals are kept after they ended. Certificates and the record "
        "of governance are kept for ever.",
    )
    lease: Duration = Field(
        "30s", description="How long a worker that does not answer keeps the window that it works on."
    )
    workers_max: int = Field(
        4, ge=1, le=64, description="Windows that may be worked on at once in the whole deployment."
    )
    retention_schedule: Schedule = Field(
        "every 15m", description="When retention runs: `every 15m`, a cron line in UTC, or `never`."
    )
    expiry_schedule: Schedule = Field("30 3 * * *", description="When expired windows are destroyed.")
    precreate_schedule: Schedule = Field(
        "every 10m", description="When tables of coming windows are made ahead."
    )
    checkpoint_schedule: Schedule = Field(
        "every 1h", description="When logs that have grown get a signed checkpoint."
    )
    checkpoint_to: tuple[Place, ...] = Field(
        (),
        description="Where checkpoints are published, as a JSON list of paths and file or http(s) URLs in "
        'which `{tenant}` stands for the name, e.g. ["/mnt/auditor/{tenant}.txt"]; nowhere unless set.',
    )
    checkpoint_token: SecretStr | None = Field(
        None, description="The bearer token that http(s) addresses of EVENTSTORE_CHECKPOINT_TO are sent."
    )
    scrub_schedule: Schedule = Field("every 1h", description="When segments are read again and compared.")
    scrub_every: Duration = Field("90d", description="How often each segment is read again.")
    scrub_bytes_per_s: int = Field(
        8 * 2**20, gt=0, description="How fast a scrub reads at the most, in bytes a second."
    )
    host: str = Field("127.0.0.1", description="Address that `eventstore serve` listens on.")
    port: int = Field(
        8080, ge=0, le=65535, description="Port that `eventstore serve` listens on; 0 picks one."
    )
    cors_origins: tuple[str, ...] = Field(
        (),
        description="Origins whose pages a browser lets call the API, as a JSON list, e.g. "
        '["https://console.example.org"]; none unless set.',
    )
    body_bytes_max: int = Field(64 * 2**20, gt=0, le=2**30, description="The largest request body, in bytes.")
    bodies_bytes_max: int = Field(
        512 * 2**20,
        gt=0,
        description="How many bytes of request bodies each API process takes in at once; whoever comes with "
        "more is answered 503.",
    )
    value_bytes_max: int = Field(
        256 * 2**10,
        gt=0,
        le=16 * 2**20,
        description="The largest old_value, new_value or metadata of an event, in bytes of JSON.",
    )
    feed_keepalive: Duration = Field(
        "15s",
        description="How long a feed may be silent before a sign of life is sent; so often its key is "
        "looked at.",
    )
    feed_stall: Duration = Field(
        "30s",
        description="How long who follows a feed or exports may take nothing in before it is disconnected.",
    )
    exports_dir: Path | None = Field(
        None,
        description="Folder of exports that are made in the background; <home>/exports unless set. Several "
        "API processes on different machines need one that they share.",
    )
    exports_kept: Duration = Field(
        "7d", description="How long the file of an export that was made in the background can be downloaded."
    )
    export_workers: int = Field(
        1,
        ge=0,
        le=16,
        description="Exports that each API process makes in the background at once; 0: it makes none.",
    )
    export_bytes_max: int = Field(
        16 * 2**30,
        gt=0,
        description="The largest file of an export that is made in the background, in bytes.",
    )
    exports_kept_bytes_max: int = Field(
        128 * 2**30,
        gt=0,
        description="What all files of exports that are made in the background may take together, in bytes.",
    )
    exports_per_caller_max: int = Field(
        3, ge=1, description="Exports of one caller that may wait or be made in the background at once."
    )
    exports_per_tenant_max: int = Field(10, ge=1, description="The same for one tenant, of all its callers.")
    append_workers: int = Field(4, ge=1, le=64, description="Tenants that are written to at the same time.")
    limit_requests_per_s: int = Field(
        1000,
        ge=1,
        le=REQUESTS_PER_S_MAX,
        description="Requests a second that a key may send to each API process.",
    )
    limit_feeds_max: int = Field(
        100,
        ge=1,
        le=FEEDS_MAX,
        description="Feeds and exports that a key may have open at the same time in each API process.",
    )
    limit_archive_bytes_per_day: int = Field(
        2**40,
        ge=1,
        le=ARCHIVE_BYTES_PER_DAY_MAX,
        description="Bytes of the archive that a key may scan in a day of UTC, in all processes together.",
    )
    reason_required: bool = Field(
        False, description="Whether reads that are written to the log of reads need a reason."
    )
    console_url: IssuerUrl | None = Field(
        None,
        description="Where people reach the console: the scheme and host of the proxy that takes their TLS, "
        "e.g. https://eventstore.example.org. Without it, sign-in is for this machine alone.",
    )
    session_lifetime: Duration = Field(
        "12h", description="How long after signing in a person has to sign in to the console again."
    )
    session_idle: Duration = Field("1h", description="How long a session of the console lasts unused.")

    oidc_issuer: IssuerUrl | None = Field(
        None, description="Issuer of the tokens with which persons sign in, exactly as it names itself."
    )
    oidc_audience: str | None = Field(
        None, min_length=1, description="What tokens must name as their audience: this store, for the issuer."
    )
    oidc_jwks_url: IssuerUrl | None = Field(
        None, description="Where the issuer's keys are; asked of the issuer (discovery) unless set."
    )
    oidc_role_claim: str = Field(
        "eventstore_role", min_length=1, description="The claim that gives a person's role."
    )
    oidc_tenant_claim: str = Field(
        "eventstore_tenant",
        min_length=1,
        description="The claim that gives a person's tenant, or `*` for the whole deployment.",
    )
    oidc_roles: dict[str, Role] = Field(
        default_factory=dict,
        description="What values of the role claim mean, as a JSON object; the roles' own names unless set.",
    )

    oidc_client_id: str | None = Field(
        None,
        min_length=1,
        description="The console's own name with the issuer. Without it, no one signs in to the console "
        "there; it needs EVENTSTORE_CONSOLE_URL.",
    )
    oidc_client_secret: SecretStr | None = Field(
        None, description="The console's secret with the issuer; none for a public client (PKCE alone)."
    )
    oidc_client_secret_file: Path | None = Field(
        None, description="A file with that secret, instead of the variable."
    )

    @model_validator(mode="after")
    def _oidc_is_whole(self) -> Settings:
        given = sorted(name for name in self.model_fields_set if name.startswith("oidc_"))
        if given and (self.oidc_issuer is None or self.oidc_audience is None):
            raise ValueError(
                f"EVENTSTORE_{given[0].upper()} is set: tokens need EVENTSTORE_OIDC_ISSUER and "
                "EVENTSTORE_OIDC_AUDIENCE, both"
            )
        if self.oidc_role_claim == self.oidc_tenant_claim:
            raise ValueError("EVENTSTORE_OIDC_ROLE_CLAIM and EVENTSTORE_OIDC_TENANT_CLAIM are the same claim")
        return self

    @model_validator(mode="after")
    def _people_can_come_back(self) -> Settings:
        if self.oidc_client_id is not None and self.console_url is None:
            raise ValueError("EVENTSTORE_OIDC_CLIENT_ID needs EVENTSTORE_CONSOLE_URL, where people come back")
        if self.oidc_client_secret is not None and self.oidc_client_secret_file is not None:
            raise ValueError(
                "EVENTSTORE_OIDC_CLIENT_SECRET and EVENTSTORE_OIDC_CLIENT_SECRET_FILE are both set"
            )
        return self

    @field_validator("console_url")
    @classmethod
    def _is_origin(cls, url: str | None) -> str | None:
        if url is not None and not _ORIGIN.fullmatch(url.rstrip("/")):
            raise ValueError(f"{url!r} is no scheme and host alone, such as https://eventstore.example.org")
        return None if url is None else url.rstrip("/").lower()

    @field_validator("cors_origins")
    @classmethod
    def _are_origins(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        for origin in origins:
            if origin != "*" and not _ORIGIN.fullmatch(origin):
                raise ValueError(f"{origin!r} is no origin, such as https://console.example.org (or '*')")
        return origins

    @model_validator(mode="after")
    def _app_has_a_server(self) -> Settings:
        if self.app_database_url is not None and self.database_url is None:
            raise ValueError("EVENTSTORE_APP_DATABASE_URL needs EVENTSTORE_DATABASE_URL, the owner's login")
        return self

    @field_validator("targets")
    @classmethod
    def _own_name(cls, targets: dict[str, str]) -> dict[str, str]:
        if DEFAULT_TARGET in targets:
            raise ValueError(f"the target {DEFAULT_TARGET!r} is what EVENTSTORE_ARCHIVE_URL names")
        return targets

    @property
    def target_urls(self) -> dict[str, str]:
        """Every archive target's URL by its name."""
        return {DEFAULT_TARGET: self.resolved_archive_url, **self.targets}

    @property
    def oidc(self) -> OidcConfig | None:
        """Whose tokens are taken; None: nobody's."""
        if self.oidc_issuer is None or self.oidc_audience is None:
            return None
        return OidcConfig(
            issuer=self.oidc_issuer,
            audience=self.oidc_audience,
            jwks_url=self.oidc_jwks_url,
            role_claim=self.oidc_role_claim,
            tenant_claim=self.oidc_tenant_claim,
            roles=self.oidc_roles,
        )

    @property
    def oidc_client(self) -> OidcClient | None:
        """The console as the issuer knows it; None: nobody signs in to it there.

        Raises:
            SetupError: the file with the secret cannot be read.
        """
        if self.oidc_issuer is None or self.oidc_client_id is None:
            return None
        secret = None if self.oidc_client_secret is None else self.oidc_client_secret.get_secret_value()
        if self.oidc_client_secret_file is not None:
            try:
                secret = self.oidc_client_secret_file.read_text().strip()
            except (OSError, UnicodeDecodeError) as e:
                raise SetupError(
                    f"EVENTSTORE_OIDC_CLIENT_SECRET_FILE cannot be read: {e}", hint="who may read it?"
                ) from e
        return OidcClient(
            issuer=self.oidc_issuer,
            client_id=self.oidc_client_id,
            secret=secret or None,
            redirect_uri=f"{self.console_url}/console/sign-in/done",
        )

    @property
    def default_limits(self) -> Limits:
        """The limits of a key that has none of its own."""
        return Limits(
            requests_per_s=self.limit_requests_per_s,
            body_bytes_max=self.body_bytes_max,
            feeds_max=self.limit_feeds_max,
            archive_bytes_per_day=self.limit_archive_bytes_per_day,
        )

    @property
    def resolved_exports_dir(self) -> Path:
        return (self.exports_dir or self.resolved_home / "exports").expanduser().resolve()

    @property
    def resolved_key_file(self) -> Path:
        return self.signing_key_file or self.resolved_home / "keys" / "signing.pem"

    @property
    def resolved_home(self) -> Path:
        return self.home.expanduser().resolve()

    @property
    def resolved_archive_url(self) -> str:
        return self.archive_url or (self.resolved_home / "archive").as_uri()


def load_settings() -> Settings:
    """Settings from the environment.

    Raises:
        SetupError: a variable has a value that it cannot have.
    """
    try:
        return Settings()
    except ValidationError as e:
        problem = e.errors()[0]
        name = "EVENTSTORE_" + "_".join(str(part) for part in problem["loc"]).upper()
        what = f"{name}: {problem['msg']}" if problem["loc"] else problem["msg"]
        raise SetupError(what, hint="see docs/reference/settings.md") from e
