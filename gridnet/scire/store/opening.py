"""Which database a site file names."""

from __future__ import annotations

from pathlib import Path

from gridnet.errors import ConfigError, Fault
from gridnet.scire.store.database import Database
from gridnet.scire.store.schema import POSTGRESQL_WORDS, SQLITE_WORDS, migrate
from gridnet.scire.store.sqlite import SqliteDatabase


def open_database(
    names: tuple[str, ...], directory: Path, threads: int, who: str, *, serve: bool = False
) -> Database:
    """
    The database *names*, with its tables brought to this version.

    :param names: one path of an SQLite file, or connection strings of one PostgreSQL database
        (``postgresql://...``), tried in order.
    :param directory: that a relative path starts from.
    :param serve: a server wants it: of an SQLite file it is the only one.
    :raises gridnet.errors.ConfigError: it cannot be used.
    """
    if all(name.startswith(("postgresql://", "postgres://")) for name in names) and names:
        try:
            from gridnet.scire.store.postgresql import PostgresDatabase
        except ImportError:
            what = "PostgreSQL needs psycopg: install gridnet[postgresql]"
            raise ConfigError([Fault("scire.database", what)]) from None
        postgres = PostgresDatabase(names, threads, application=f"scire {who}")
        postgres.check()
        migrate(postgres, POSTGRESQL_WORDS)
        return postgres
    if len(names) != 1 or "://" in names[0]:
        what = "expected one file, or connection strings that start with postgresql://"
        raise ConfigError([Fault("scire.database", what)])
    sqlite = SqliteDatabase(directory / names[0])
    if serve:
        # Before the tables are touched, which may be those of an older server that runs.
        sqlite.lock()
    migrate(sqlite, SQLITE_WORDS)
    return sqlite
