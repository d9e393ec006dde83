"""What a Lytics account holds: audiences, people, memberships, jobs and authorizations, in a SQLite file.

The sender writes it while it makes messages, and the API reads it in another process. A membership is what the
messages mean: the newest transition wins, and at the same instant an exit.
"""

import json
import sqlite3
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from time import monotonic
from typing import Any

from sandbox.lytics.model import Message, made_at_of, nanoseconds

SCHEMA = """
CREATE TABLE IF NOT EXISTS audience (segment_id TEXT PRIMARY KEY, slug TEXT, size INTEGER NOT NULL DEFAULT 0);
CREATE TABLE IF NOT EXISTS profile (profile_id TEXT PRIMARY KEY, data TEXT) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS identifier (name TEXT, value TEXT, profile_id TEXT, PRIMARY KEY (name, value)) WITHOUT ROWID;
-- rank: twice the nanoseconds of the newest transition, plus one for an exit. An even rank is a member.
CREATE TABLE IF NOT EXISTS membership (
    segment_id TEXT, profile_id TEXT, rank INTEGER, PRIMARY KEY (segment_id, profile_id)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS membership_of_profile ON membership (profile_id);
CREATE TABLE IF NOT EXISTS thing (kind TEXT, id TEXT, body TEXT, made_at REAL, PRIMARY KEY (kind, id));
CREATE TABLE IF NOT EXISTS log (job_id TEXT, body TEXT);
CREATE TRIGGER IF NOT EXISTS entered AFTER INSERT ON membership WHEN new.rank % 2 = 0
BEGIN UPDATE audience SET size = size + 1 WHERE segment_id = new.segment_id; END;
CREATE TRIGGER IF NOT EXISTS moved AFTER UPDATE OF rank ON membership WHEN new.rank % 2 <> old.rank % 2
BEGIN UPDATE audience SET size = size + 1 - 2 * (new.rank % 2) WHERE segment_id = new.segment_id; END;
"""
MOVE = """
INSERT INTO membership VALUES (?, ?, ?)
ON CONFLICT DO UPDATE SET rank = excluded.rank WHERE excluded.rank > membership.rank
"""
# The sender writes at most this number of messages at once, and waits at most this number of seconds.
MESSAGES_AT_ONCE, SECONDS_BETWEEN_WRITES = 2_000, 0.5
Row = tuple[Any, ...]


class Account:
    """One file, with a connection for each thread."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._local = threading.local()
        self._database.executescript(SCHEMA)

    @property
    def _database(self) -> sqlite3.Connection:
        known: sqlite3.Connection | None = getattr(self._local, "database", None)
        if known is None:
            known = self._local.database = sqlite3.connect(self._file, timeout=30)
            known.execute("PRAGMA journal_mode = WAL")
            known.execute("PRAGMA synchronous = NORMAL")
        return known

    def close(self) -> None:
        """Close the connection of this thread."""
        self._database.close()
        del self._local.database

    def rows(self, query: str, *values: Any) -> list[Row]:
        return self._database.execute(query, values).fetchall()

    def write(self, statement: str, *values: Any) -> int:
        with self._database as database:
            return database.execute(statement, values).rowcount

    # What the sender tells

    def recorded(self, messages: Iterable[Message], identifier_field: str) -> Iterator[Message]:
        """Pass the messages on, and keep what they mean."""
        waiting: list[Message] = []
        due = monotonic() + SECONDS_BETWEEN_WRITES
        try:
            for message in messages:
                waiting.append(message)
                if len(waiting) >= MESSAGES_AT_ONCE or monotonic() > due:
                    self.keep(waiting, identifier_field)
                    waiting, due = [], monotonic() + SECONDS_BETWEEN_WRITES
                yield message
        finally:
            self.keep(waiting, identifier_field)

    def keep(self, messages: Iterable[Message], identifier_field: str) -> None:
        slugs, moves, profiles, names = {}, [], {}, set()
        for message in messages:
            person, data = message["id"], dict(message["data"])
            for transition in data.pop("segment_events"):
                kind = transition["event"]
                when = transition[kind] if kind != "change" else made_at_of(message)
                slugs[transition["id"]] = transition["slug"]
                moves.append((transition["id"], person, 2 * nanoseconds(when) + (kind == "exit")))
            profiles[person] = json.dumps(data)
            value = data[identifier_field]
            names |= {(identifier_field, str(one), person) for one in (value if isinstance(value, list) else [value])}
        with self._database as database:
            database.executemany("INSERT OR IGNORE INTO audience (segment_id, slug) VALUES (?, ?)", slugs.items())
            database.executemany("INSERT OR REPLACE INTO profile VALUES (?, ?)", profiles.items())
            database.executemany("INSERT OR REPLACE INTO identifier VALUES (?, ?, ?)", names)
            database.executemany(MOVE, moves)

    # What the API asks for

    def audiences(self) -> list[Row]:
        return self.rows("SELECT segment_id, slug, size FROM audience ORDER BY rowid")

    def audience(self, id_or_slug: str) -> Row | None:
        """By id, or by slug: with several seeds in one file, the newest audience of that slug."""
        query = "SELECT segment_id, slug, size FROM audience WHERE ? IN (segment_id, slug) ORDER BY rowid DESC LIMIT 1"
        return next(iter(self.rows(query, id_or_slug)), None)

    def members(self, segment_id: str, *, after: str, limit: int) -> list[tuple[str, dict[str, Any]]]:
        query = """
            SELECT profile_id, data FROM membership JOIN profile USING (profile_id)
            WHERE segment_id = ? AND profile_id > ? AND rank % 2 = 0 ORDER BY profile_id LIMIT ?
        """
        return [(person, json.loads(data)) for person, data in self.rows(query, segment_id, after, limit)]

    def person(self, name: str, value: str) -> tuple[str, dict[str, Any]] | None:
        query = "SELECT profile_id, data FROM identifier JOIN profile USING (profile_id) WHERE name = ? AND value = ?"
        found = next(iter(self.rows(query, name, value)), None)
        return found and (found[0], json.loads(found[1]))

    def audiences_of(self, person: str) -> list[Row]:
        query = """
            SELECT segment_id, slug FROM membership JOIN audience USING (segment_id)
            WHERE profile_id = ? AND rank % 2 = 0
        """
        return self.rows(query, person)

    def move(self, segment_id: str, person: str, *, is_member: bool, at: int) -> None:
        """Change a membership without an event: how both ends come to differ."""
        self.write("INSERT OR REPLACE INTO membership VALUES (?, ?, ?)", segment_id, person, 2 * at + (not is_member))
        size = "(SELECT count(*) FROM membership AS m WHERE m.segment_id = audience.segment_id AND rank % 2 = 0)"
        self.write(f"UPDATE audience SET size = {size} WHERE segment_id = ?", segment_id)  # noqa: S608 - our own text

    def change_profile(self, person: str, fields: dict[str, Any], identifier_field: str) -> None:
        """Change fields of a profile without an event, such as a list that loses a value."""
        data = {**self._data(person), **fields}
        value = data.get(identifier_field)
        names = [str(one) for one in (value if isinstance(value, list) else [value])]
        with self._database as database:
            database.execute("UPDATE profile SET data = ? WHERE profile_id = ?", (json.dumps(data), person))
            database.execute("DELETE FROM identifier WHERE name = ? AND profile_id = ?", (identifier_field, person))
            database.executemany(
                "INSERT OR REPLACE INTO identifier VALUES (?, ?, ?)", [(identifier_field, one, person) for one in names]
            )

    def merge_profiles(self, lost: str, kept: str, identifier_field: str) -> None:
        """Make one profile part of another without an event: its list and its memberships go to that one."""
        inside = self.rows("SELECT segment_id, rank FROM membership WHERE profile_id = ? AND rank % 2 = 0", lost)
        both = [one for person in (kept, lost) for one in self._data(person)[identifier_field]]
        with self._database as database:
            database.executemany(MOVE, [(segment_id, kept, rank) for segment_id, rank in inside])
            database.executemany(MOVE, [(segment_id, lost, rank + 1) for segment_id, rank in inside])
            database.execute("DELETE FROM identifier WHERE profile_id = ?", (lost,))
            database.execute("DELETE FROM profile WHERE profile_id = ?", (lost,))
        self.change_profile(kept, {identifier_field: list(dict.fromkeys(both))}, identifier_field)

    def _data(self, person: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.rows("SELECT data FROM profile WHERE profile_id = ?", person)[0][0])
        return found

    def delete_audience(self, segment_id: str) -> None:
        """Delete an audience as a person does in Lytics: jobs still name it, and no exit is sent."""
        self.write("DELETE FROM membership WHERE segment_id = ?", segment_id)
        self.write("DELETE FROM audience WHERE segment_id = ?", segment_id)

    def things(self, kind: str) -> list[dict[str, Any]]:
        return [json.loads(body) for (body,) in self.rows("SELECT body FROM thing WHERE kind = ? ORDER BY rowid", kind)]

    def thing(self, kind: str, name: str) -> dict[str, Any] | None:
        found = self.rows("SELECT body FROM thing WHERE kind = ? AND id = ?", kind, name)
        return json.loads(found[0][0]) if found else None

    def put(self, kind: str, thing: dict[str, Any], *, made_at: float) -> None:
        statement = "INSERT INTO thing VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE SET body = excluded.body"
        self.write(statement, kind, thing["id"], json.dumps(thing), made_at)

    def made_since(self, moment: float) -> int:
        return int(self.rows("SELECT count(*) FROM thing WHERE made_at > ?", moment)[0][0])

    def logs(self, job_id: str) -> list[dict[str, Any]]:
        return [json.loads(body) for (body,) in self.rows("SELECT body FROM log WHERE job_id = ?", job_id)]

    def log(self, job_id: str, entry: dict[str, Any]) -> None:
        self.write("INSERT INTO log VALUES (?, ?)", job_id, json.dumps(entry))
