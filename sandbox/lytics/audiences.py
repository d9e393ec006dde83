"""Audiences with names like those of a real account."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from itertools import count, islice

NAMES = """
vip_buyers cart_abandoners newsletter_readers win_back high_intent_visitors loyalty_gold lapsed_90_days
first_time_buyers repeat_buyers discount_seekers mobile_app_users store_visitors email_openers email_dormant
likely_to_churn likely_to_buy window_shoppers gift_buyers holiday_shoppers back_to_school weekend_browsers
blog_readers video_watchers webinar_attendees trial_users trial_expired subscribers_monthly subscribers_annual
referral_sources survey_promoters survey_detractors support_contacts returns_frequent size_finders wishlist_keepers
price_drop_watchers new_parents pet_owners outdoor_fans home_decorators frequent_travellers local_pickup sms_opt_in
push_opt_in lookalike_vip paid_search_visitors social_visitors affiliate_visitors unknown_to_known deeply_engaged
""".split()  # noqa: SIM905 - fifty lines of list would hide the rest

# Slugs as account owners type them. No two of them may map to the same ODP id: the receiver would add a suffix to the
# one that arrives second, the order of twenty callers is random, and so the expected result would be unknown.
AWKWARD = ["VIP-Buyers.2026", "Black-Friday.EU", "Newsletter.Weekly", "2026-lapsed", "Loyalty--Platinum", "B2B.Leads"]


@dataclass(frozen=True)
class Audience:
    segment_id: str
    slug: str

    @property
    def odp_id(self) -> str:
        return "lytics_" + re.sub(r"[^a-z0-9_]+", "_", self.slug.lower())


def audiences(*, how_many: int, seed: int, awkward: bool = False) -> list[Audience]:
    return [Audience(hex_id(seed, "segment", slug), slug) for slug in islice(_slugs(awkward), how_many)]


def hex_id(*parts: object) -> str:
    """A hash of `parts` with 32 hex digits. Unlike the built-in hash it is the same on every machine."""
    return blake2b("/".join(map(str, parts)).encode(), digest_size=16).hexdigest()


def _slugs(awkward: bool) -> Iterator[str]:
    if awkward:
        yield from AWKWARD
    yield from NAMES
    # Lytics adds a number in the same way when a slug is taken.
    for number in count(1):
        yield from (f"{name}_{number}" for name in NAMES)
