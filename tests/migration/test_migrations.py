"""Migrations: they make exactly the models, refuse other versions, and are inside the wheel."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from alembic import command
from eventstore.app import open_store
from eventstore.db.engine import Database
from eventstore.db.migrate import (
    _config,
    check_schema,
    current_version,
    migrations_path,
    required_version,
    upgrade,
)
from eventstore.db.tables import metadata
from eventstore.errors import SchemaVersionError
from eventstore.governance.policies import policy_of
from eventstore.governance.tenants import create_tenant
from eventstore.model.policy import DEFAULT_POLICY
from eventstore.model.window import WindowUnit
from eventstore.settings import Settings
from tests.conftest import create_database

ROOT = Path(__file__).resolve().parents[2]
EVENTSTORE = str(Path(sys.executable).parent / "eventstore")


@pytest.fixture
def empty(server_url: str) -> Iterator[Database]:
    """A database without any schema."""
    name = f"empty_{os.urandom(6).hex()}"
    database = Database(create_database(server_url, name))
    database.open()
    yield database
    database.close()
    engine = sa.create_engine(
        sa.make_url(server_url).set(drivername="postgresql+psycopg"), isolation_level="AUTOCOMMIT"
    )
    with engine.connect() as conn:
        conn.execute(sa.text(f'DROP DATABASE "{name}" WITH (FORCE)'))
    engine.dispose()


def differences(database: Database) -> list[object]:
    with database.engine.connect() as conn:
        context = MigrationContext.configure(
            conn, opts={"compare_type": True, "compare_server_default": True, "target_metadata": metadata}
        )
        return list(compare_metadata(context, metadata))


def test_migrations_make_exactly_the_models(empty: Database) -> None:
    upgrade(empty)
    assert differences(empty) == []


def test_the_comparison_sees_differences(empty: Database) -> None:
    """The guard's guard: a column, a type and an index more or less are found."""
    upgrade(empty)
    for change in (
        "ALTER TABLE runs ADD COLUMN extra text",
        "ALTER TABLE heads ALTER COLUMN last_seq TYPE integer",
        "CREATE INDEX extra ON segments (part)",
        "ALTER TABLE windows ALTER COLUMN leaf DROP NOT NULL",
    ):
        before = len(differences(empty))
        with empty.transaction() as conn:
            conn.exec_driver_sql(change)
        assert len(differences(empty)) == before + 1, change


def constraints(database: Database) -> dict[str, str]:
    """Check constraints and their text, which Alembic does not compare."""
    with database.engine.connect() as conn:
        rows = conn.exec_driver_sql(
            "SELECT conrelid::regclass || '.' || conname, pg_get_constraintdef(oid) FROM pg_constraint"
            " WHERE connamespace = 'public'::regnamespace AND contype <> 'n'"
        )
        return {name: text for name, text in rows if not name.startswith("alembic")}


def test_constraints_are_those_of_the_models(empty: Database) -> None:
    upgrade(empty)
    migrated = constraints(empty)
    with empty.transaction() as conn:
        conn.exec_driver_sql("DROP SCHEMA public CASCADE")
        conn.exec_driver_sql("CREATE SCHEMA public")
        metadata.create_all(conn)
    assert migrated == constraints(empty)
    assert len(migrated) > 20


def test_there_is_a_single_head() -> None:
    script = ScriptDirectory(str(migrations_path()))
    assert len(script.get_heads()) == 1
    assert len(script.get_bases()) == 1


def test_upgrading_twice_changes_nothing(empty: Database) -> None:
    first = upgrade(empty)
    create_tenant(empty, "acme", DEFAULT_POLICY)
    assert upgrade(empty) == first == current_version(empty) == required_version()
    with empty.transaction() as conn:
        assert conn.exec_driver_sql("SELECT count(*) FROM tenants").scalar_one() == 1
    check_schema(empty)


def set_version(database: Database, version: str) -> None:
    with database.transaction() as conn:
        conn.execute(sa.text("UPDATE alembic_version SET version_num = :v"), {"v": version})


def environment_for(url: str) -> dict[str, str]:
    return {**os.environ, "EVENTSTORE_DATABASE_URL": url, "COLUMNS": "200"}


def run_cli(url: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [EVENTSTORE, *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env=environment_for(url),
    )


@pytest.mark.parametrize(
    ("version", "named", "mend"),
    [
        (None, "is missing", "eventstore db upgrade"),
        ("0000", "is 0000", "eventstore db upgrade"),
        ("9999", "is 9999", "upgrade the eventstore program"),
    ],
    ids=["missing", "older", "newer"],
)
def test_another_version_is_refused(
    empty: Database, tmp_path: Path, version: str | None, named: str, mend: str
) -> None:
    if version is not None:
        upgrade(empty)
        set_version(empty, version)
    settings = Settings(database_url=empty.url, home=tmp_path)
    with pytest.raises(SchemaVersionError, match=named) as caught, open_store(settings):
        pass
    assert mend in caught.value.hint
    assert required_version() in caught.value.message
    if version == "0000":
        return  # as for a missing one; each call of the command line takes a second
    shown = run_cli(empty.url, "tenants", "list")
    assert shown.returncode == 78, shown
    assert named in shown.stderr
    assert mend in shown.stderr
    assert "Traceback" not in shown.stderr


def test_a_newer_database_is_not_upgraded(empty: Database) -> None:
    upgrade(empty)
    set_version(empty, "9999")
    with pytest.raises(SchemaVersionError, match="9999"):
        upgrade(empty)
    assert current_version(empty) == "9999"


def test_programs_that_upgrade_at_once_wait_for_one_another(empty: Database) -> None:
    command = [EVENTSTORE, "db", "upgrade"]
    programs = [
        subprocess.Popen(command, env=environment_for(empty.url), stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    shown = [program.communicate(timeout=60)[0] for program in programs]
    assert [program.returncode for program in programs] == [0, 0]
    assert all(required_version() in text for text in shown)
    assert differences(empty) == []
    assert run_cli(empty.url, "db", "version").returncode == 0


LOOK = """
import json, sys
import eventstore
from eventstore.db.migrate import migrations_path
path = migrations_path()
print(json.dumps([eventstore.__file__, str(path), sorted(p.name for p in (path / "versions").glob("*.py"))]))
"""


def test_a_wheel_brings_its_migrations(tmp_path: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}

    def run(*command: str, cwd: Path = ROOT, **more: str) -> str:
        done = subprocess.run(
            [sys.executable, *command],
            cwd=cwd,
            env={**environment, **more},
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    run("-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path / "dist"))
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    ours = sorted(path.name for path in (ROOT / "alembic" / "versions").glob("*.py"))
    with zipfile.ZipFile(wheel) as file:
        names = file.namelist()
    assert {f"eventstore/_alembic/versions/{name}" for name in ours} <= set(names)
    assert {"eventstore/_alembic/env.py", "eventstore/py.typed"} <= set(names)
    assert not any(name.startswith(("tests/", "alembic/")) for name in names)
    # And all that the console's pages are made of, with the front-end library that is not in the repository.
    console = ROOT / "eventstore" / "console"
    pages = {p.relative_to(ROOT).as_posix() for p in (console / "templates").glob("*.html")}
    looks = {p.relative_to(ROOT).as_posix() for p in (console / "static").glob("*.*")}
    assert pages | looks | {"eventstore/console/static/vendor/htmx.min.js"} <= set(names)
    assert len(pages) >= 12
    assert "eventstore/_alembic/__init__.py" not in names
    run(
        "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target", str(tmp_path / "lib"), str(wheel)
    )
    found = run("-c", LOOK, cwd=tmp_path, PYTHONPATH=str(tmp_path / "lib"))
    package, path, versions = json.loads(found)
    assert Path(package).is_relative_to(tmp_path)
    assert Path(path) == tmp_path / "lib" / "eventstore" / "_alembic"
    assert versions == ours


def test_what_was_there_before_tiers_is_carried_over(empty: Database) -> None:
    """A database of revision 0001, with tenants, an archived window and a run, after the next one."""
    command.upgrade(_config(empty), "0001")
    with empty.transaction() as conn:
        for statement in (
            "INSERT INTO tenants (tenant_id, window_unit, hot_for_us) VALUES ('a', 'day', 3600000000),"
            " ('b', 'month', 7776000000000)",
            "INSERT INTO heads VALUES ('a', 1, '\\x00', 5, 0)",
            "INSERT INTO watermarks VALUES ('a', 1, '\\x00')",
            "INSERT INTO windows VALUES ('a', '2024-01-01Z', '2024-01-02Z', 'dropped', 'l1', 1, 1, '', ''),"
            " ('a', '2024-01-02Z', '2024-01-03Z', 'open', 'l2', 2, NULL, NULL, NULL)",
            "INSERT INTO segments VALUES ('a', 1, 1, '2024-01-01Z', 0, 'k', '', '', now(), now(), 9, '', 1)",
            "INSERT INTO runs (run_id, now_us, status) VALUES (gen_random_uuid(), 1, 'running')",
            "INSERT INTO run_entries SELECT run_id, 7, now(), 'warning', 'a', NULL, '{}' FROM runs",
        ):
            conn.exec_driver_sql(statement)
    upgrade(empty)
    assert differences(empty) == []
    with empty.transaction() as conn:
        policies = {name: policy_of(conn, name, 0).policy for name in ("a", "b")}
        windows = conn.exec_driver_sql("SELECT state, target FROM windows ORDER BY window_from").all()
        segments = conn.exec_driver_sql("SELECT target, key FROM segments").all()
        runs = conn.exec_driver_sql("SELECT status, kind, finished_at IS NOT NULL FROM runs").all()
        recorded = conn.exec_driver_sql(
            "SELECT entry_no, kind, tenant_id, mirrored FROM governance ORDER BY entry_no"
        ).all()
        made = conn.exec_driver_sql(
            "INSERT INTO run_entries (run_id, kind, detail) SELECT run_id, 'warning', '{}' FROM runs"
            " RETURNING entry_no"
        ).scalar_one()
    assert policies["a"] == replace(DEFAULT_POLICY, unit=WindowUnit.DAY, hot_for_us=3_600_000_000)
    assert policies["b"] == DEFAULT_POLICY
    assert windows == [("dropped", "archive"), ("open", None)]
    assert segments == [("archive", "k")]
    assert runs == [("interrupted", "retention", True)]
    assert recorded == [
        (1, "tenant_created", "a", False),
        (2, "policy", "a", False),
        (3, "tenant_created", "b", False),
        (4, "policy", "b", False),
    ]
    assert made == 8
