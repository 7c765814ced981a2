"""
Tables of the store, and how an older file becomes a present one.

Version numbers live in ``PRAGMA user_version``; ``PRAGMA application_id`` marks the file as ours.
"""

from __future__ import annotations

from collections.abc import Sequence

#: "GNLB"
APPLICATION_ID = 0x474E4C42

_FIRST = """
CREATE TABLE jobs (
    id INTEGER PRIMARY KEY,       -- never used twice
    unique_part TEXT NOT NULL UNIQUE,
    job_id TEXT NOT NULL,
    owner TEXT NOT NULL,          -- normal form
    owner_key TEXT NOT NULL,      -- the same without case
    job_type INTEGER NOT NULL,
    state INTEGER NOT NULL,
    parent TEXT,                  -- unique part
    entered_at INTEGER NOT NULL,  -- microseconds
    updated_at INTEGER NOT NULL,  -- microseconds
    due_at REAL,                  -- seconds; when it may leave, NULL: not on its own
    record TEXT NOT NULL          -- JSON, see gridnet.lbproxy.record
);
CREATE INDEX jobs_owner ON jobs (owner_key);
CREATE INDEX jobs_parent ON jobs (parent) WHERE parent IS NOT NULL;
CREATE INDEX jobs_due ON jobs (due_at) WHERE due_at IS NOT NULL;

CREATE TABLE parts (              -- what a record has many of, or long
    job INTEGER NOT NULL,
    part TEXT NOT NULL,
    key NOT NULL,                 -- a name, or a place in a list
    value TEXT NOT NULL,          -- JSON
    PRIMARY KEY (job, part, key)
);

CREATE TABLE events (
    position INTEGER PRIMARY KEY, -- grows with each event, never used twice
    job INTEGER NOT NULL,
    fingerprint INTEGER NOT NULL, -- by which a repeated event is known
    type INTEGER NOT NULL,
    source INTEGER NOT NULL,
    level INTEGER NOT NULL,
    timestamp INTEGER NOT NULL,   -- microseconds
    arrived INTEGER NOT NULL,     -- seconds
    state_before INTEGER NOT NULL,
    state INTEGER NOT NULL,       -- after it
    line BLOB NOT NULL            -- as received
);
CREATE INDEX events_job ON events (job, fingerprint);

CREATE TABLE spool (              -- what waits to be forwarded
    position INTEGER PRIMARY KEY, -- of the event
    destination TEXT NOT NULL,    -- host:port
    job INTEGER NOT NULL
);
CREATE INDEX spool_destination ON spool (destination, position);

CREATE TABLE purged (             -- jobs that left
    job INTEGER PRIMARY KEY,
    unique_part TEXT NOT NULL,
    job_id TEXT NOT NULL,
    owner TEXT NOT NULL,
    purged_at REAL NOT NULL,      -- seconds
    keeps_events INTEGER NOT NULL -- whether events of it are still in the stream
);
CREATE INDEX purged_unique ON purged (unique_part);
CREATE INDEX purged_at ON purged (purged_at);
CREATE INDEX purged_keeping ON purged (purged_at) WHERE keeps_events;

CREATE TABLE consumers (          -- named followers of the event stream
    name TEXT PRIMARY KEY,
    position INTEGER NOT NULL,    -- of the last event it has taken
    seen_at REAL NOT NULL         -- seconds
);

CREATE TABLE marks (              -- numbers that must outlive the rows they came from
    name TEXT PRIMARY KEY,
    value INTEGER NOT NULL
);
"""

#: Script number n takes a file from version n to version n + 1.
MIGRATIONS: Sequence[str] = (_FIRST,)
VERSION = len(MIGRATIONS)

#: For every connection that writes.
WRITER_PRAGMAS = (
    "PRAGMA journal_mode = WAL",
    "PRAGMA synchronous = FULL",
    "PRAGMA foreign_keys = OFF",
    "PRAGMA temp_store = MEMORY",
)
