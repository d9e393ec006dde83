"""Finds audiences of one install whose slugs give the same ODP id. Later ones get a suffix to their id.

Emoji and letters outside a–z are dropped from the id, so two such slugs get similar ids in ODP, where an id never
changes.
"""

from typing import NamedTuple

from django.db.models import Q

from audiences import naming, sql
from audiences.models import Audience

# At most this many audiences with a suffix are compared, newest first. It is more than ``FOLLOWED`` of
# front/troubles.py, so a pair that isn't compared is never reported as resolved.
COMPARED = 1_000


class Suffixed(NamedTuple):
    id: int


class _Compared(NamedTuple):
    """What is compared of an audience, by the names of its columns: 400 whole audiences would take *Now* longer."""

    pk: int
    install_id: int
    slug: str
    latest_slug: str
    odp_id: str
    install__odp_prefix: str


_SQL = sql.beside(__file__, id_is_unusual=naming.IS_UNUSUAL)
_SUFFIXED = _SQL.query("audiences_with_suffix", Suffixed._make)


def twins(audience: Audience) -> list[Audience]:
    """Other audiences of the install with another slug that gives the same id."""
    prefix = audience.install.odp_prefix
    plain = naming.odp_id(audience.slug, prefix=prefix)
    near = Audience.objects.filter(Q(odp_id=plain) | Q(odp_id__startswith=f"{plain}_"), install=audience.install_id)
    others = near.exclude(pk=audience.pk).exclude(slug=audience.slug).order_by("pk")
    # Names alone at first: thousands of ids may begin like this one.
    alike = [pk for pk, slug in others.values_list("pk", "slug") if naming.odp_id(slug, prefix=prefix) == plain]
    return list(others.filter(pk__in=alike)) if alike else []


def unnoticed(install_id: int | None = None) -> list[tuple[int, int]]:
    """Pairs of an audience with a suffix in its ODP id and the audience without, as ids, of one install or of all.

    Pairs that a person confirmed are left out.
    """
    compared = Audience.objects.order_by("pk").values_list(*_Compared._fields)
    ids = [row.id for row in _SUFFIXED.run(install=install_id, compared=COMPARED).all()]
    suffixed = [_Compared._make(row) for row in compared.filter(pk__in=ids)]
    plain = {
        audience.pk: (audience.install_id, naming.odp_id(audience.slug, prefix=audience.install__odp_prefix))
        for audience in suffixed
    }
    holders = compared.filter(
        install__in={install for install, _ in plain.values()}, odp_id__in={odp_id for _, odp_id in plain.values()}
    )
    by_id = {(holder.install_id, holder.odp_id): holder for holder in map(_Compared._make, holders)}
    found = []
    for audience in suffixed:
        holder = by_id.get(plain[audience.pk])
        # Two audiences with the same slug were recreated in Lytics: see audiences/operations/take_over.py.
        if holder is not None and holder.slug != audience.slug and holder.latest_slug != audience.latest_slug:
            found.append((audience.pk, holder.pk))
    return found


def read(pairs: list[tuple[int, int]]) -> list[tuple[Audience, Audience]]:
    """The audiences of the pairs, without pairs of which one was deleted meanwhile."""
    found = Audience.objects.select_related("install", "lane").in_bulk([pk for pair in pairs for pk in pair])
    return [(found[pk], found[holder]) for pk, holder in pairs if pk in found and holder in found]


def warnings(audience: Audience) -> list[str]:
    """Warnings for the audience's page: its id is hard to read, or similar to the id of another audience."""
    texts = []
    if naming.is_nearly_empty(audience.slug):
        texts.append(
            f"Its ODP id {audience.odp_id} says nothing, because the slug {audience.slug} has no letter from a to z"
            f" and no digit. In ODP look for the name {naming.label(audience.slug)}."
        )
    if others := twins(audience):
        names = ", ".join(f"{other.odp_id} ({other.slug})" for other in others[:3])
        more = f" and {len(others) - 3} more" if len(others) > 3 else ""
        texts.append(
            f"Its slug {audience.slug} becomes the same ODP id as that of {names}{more}, so the ids differ only by a"
            f" suffix. In ODP this one is named {naming.label(audience.slug)}."
        )
    return texts
