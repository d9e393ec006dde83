"""Which audience a fact belongs to: by segment id or slug, created when it is new, adopted when its id comes later."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import structlog

from audiences import naming, prepared_statements, sql
from audiences.delivery import holds, shared_ids
from audiences.models import Audience, Install
from lytics.facts import Fact

log = structlog.get_logger(__name__)

# Prefix of ``segment_id`` for an audience that was first named by its slug alone, until a call names its segment id.
BY_SLUG = "slug:"


class Found(NamedTuple):
    id: int
    segment_id: str
    latest_slug: str


class Locked(NamedTuple):
    id: int


_SQL = sql.beside(__file__)
_FIND = _SQL.query("find_audiences", Found._make, prepared=True)
_LOCK = _SQL.query("lock_audiences", Locked._make, prepared=True)


def lock(audience_ids: Iterable[int]) -> None:
    _LOCK.run(audiences=prepared_statements.numbers(audience_ids))


class Known(NamedTuple):
    """An audience that is stored."""

    pk: int
    latest_slug: str


class Name(NamedTuple):
    """How facts name an audience: by segment id, slug, or both."""

    segment_id: str
    slug: str

    @property
    def key(self) -> str:
        return self.segment_id or BY_SLUG + self.slug


FactsByName = Mapping[Name, list[Fact]]
Audiences = dict[str, Known]


def by_name(facts: Iterable[Fact]) -> FactsByName:
    """Group facts by the way they name their audience, so that each audience is looked up once.

    Facts of one name keep their order, and so do their numbers. If a call names one audience in two ways, the facts of
    one name get lower numbers than those of the other; their transition times decide which is newer, never the numbers.
    """
    facts_by_name: dict[tuple[str, str], list[Fact]] = {}
    for fact in facts:
        name = fact.segment_id, fact.slug
        if (some := facts_by_name.get(name)) is None:
            some = facts_by_name[Name(*name)] = []
        some.append(fact)
    return facts_by_name  # type: ignore[return-value] # each stored key is a Name


def wanted_names(facts_by_name: FactsByName) -> dict[str, Name]:
    """The name of each audience, by its key; with the slug, if any fact has it."""
    wanted: dict[str, Name] = {}
    for name in facts_by_name:
        known = wanted.get(name.key)
        if known is None or (name.slug and not known.slug):
            wanted[name.key] = name
    return wanted


def find_or_create(install: Install, wanted: Mapping[str, Name], found: Audiences) -> Audiences:
    """``found`` and the missing audiences, created. An audience without a slug is not created and not returned."""
    if not any(name.slug for key, name in wanted.items() if key not in found):
        return found
    # The lock keeps two calls from creating one audience twice or giving one ODP id to two audiences. This is rare.
    install = Install.objects.select_for_update(no_key=True).get(pk=install.pk)
    found = find(install, wanted)
    found |= _adopt(install, {key: name for key, name in wanted.items() if key not in found}, found)
    # Names with a segment id first: a name with a slug alone may mean one of those.
    for key in sorted((key for key in wanted if key not in found), key=lambda key: not wanted[key].segment_id):
        if wanted[key].slug:
            found[key] = _create(install, wanted[key])
    return found


def find(install: Install, wanted: Mapping[str, Name]) -> Audiences:
    """The audiences that are stored, by key."""
    if not wanted:
        return {}
    stored = _FIND.run(install=install.pk, segments=prepared_statements.texts(wanted)).all()
    found = {row.segment_id: Known(row.id, row.latest_slug) for row in stored}
    slugs = [name.slug for name in wanted.values() if not name.segment_id]
    if slugs:
        rows = Audience.objects.filter(install=install, latest_slug__in=slugs).order_by("pk")
        by_slug = {audience.latest_slug: Known(audience.pk, audience.latest_slug) for audience in rows}
        for key, name in wanted.items():
            if not name.segment_id and name.slug in by_slug:
                found.setdefault(key, by_slug[name.slug])
    return found


def has_new_slugs(audiences: Audiences, facts_by_name: FactsByName) -> bool:
    """Whether any fact has another slug than the stored one."""
    return any(
        name.slug and name.key in audiences and audiences[name.key].latest_slug != name.slug for name in facts_by_name
    )


def note_slugs(audiences: Audiences, facts_by_name: FactsByName) -> None:
    """Store slugs that were edited in Lytics, for display only. Writes only rows that ``ingest.append`` has locked."""
    if not has_new_slugs(audiences, facts_by_name):
        return
    newest: dict[int, Fact] = {}
    for name, facts in facts_by_name.items():
        if name.slug and name.key in audiences:
            latest = max(facts, key=lambda fact: fact.occurred_ns)
            known = newest.get(audiences[name.key].pk)
            if known is None or latest.occurred_ns >= known.occurred_ns:
                newest[audiences[name.key].pk] = latest
    for audience in Audience.objects.filter(pk__in=newest):
        slug = newest[audience.pk].slug
        if audience.latest_slug != slug:
            Audience.objects.filter(pk=audience.pk).update(latest_slug=slug)
            log.warning("slug edited in Lytics", audience=audience.odp_id, now=slug)


def _adopt(install: Install, unknown: Mapping[str, Name], found: Audiences) -> Audiences:
    """Give audiences known by slug alone the segment id that this call names. Returns them by key."""
    by_slug: dict[str, str] = {}
    for key, name in unknown.items():
        if name.segment_id and name.slug:
            by_slug.setdefault(BY_SLUG + name.slug, key)
    rows = Audience.objects.filter(install=install, segment_id__in=list(by_slug))
    adopted = {by_slug[audience.segment_id]: Known(audience.pk, audience.latest_slug) for audience in rows}
    if adopted:
        # Lock every audience of this call first, in the order of ``ingest.append``: the update below locks too.
        lock(known.pk for known in (*found.values(), *adopted.values()))
        for segment_id, known in adopted.items():
            Audience.objects.filter(pk=known.pk).update(segment_id=segment_id)
    return adopted


def _create(install: Install, name: Name) -> Known:
    """Create an audience with its lane; for a slug alone, return the audience that got it a moment ago, if any."""
    if not name.segment_id:
        named = Audience.objects.filter(install=install, latest_slug=name.slug).order_by("-pk").first()
        if named is not None:
            return Known(named.pk, named.latest_slug)
    taken = shared_ids.ids_of(install)
    # An older version stored no former ids. It gave an audience the plain one first, and ODP has its members there.
    slugs = Audience.objects.filter(install=install).values_list("slug", flat=True)
    taken |= {naming.odp_id(slug, prefix=install.odp_prefix) for slug in slugs}
    odp_id = naming.free_odp_id(name.slug, name.segment_id, taken, prefix=install.odp_prefix)
    audience = Audience.objects.create(
        install=install, segment_id=name.key, slug=name.slug, latest_slug=name.slug, odp_id=odp_id
    )
    holds.lay(audience)
    wanted = naming.odp_id(name.slug, prefix=install.odp_prefix)
    if odp_id != wanted:
        log.warning("two segments want one ODP id", audience=odp_id, wanted=wanted, slug=name.slug)
    return Known(audience.pk, audience.latest_slug)
