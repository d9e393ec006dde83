"""How a webhook job in Lytics differs from the settings that we ask for."""

from typing import Any

import pytest

from lytics.api.webhook_settings import Harm, WebhookSettings, is_same_url

OURS = WebhookSettings(webhook_url="https://sync.example/webhooks/lytics/a1", identifier_field="_uids", holds_list=True)
CONFIG = OURS.config(["a" * 32])


def differing(config: dict[str, Any], ours: WebhookSettings = OURS) -> list[str]:
    return [difference.key for difference in ours.differences(config)]


def test_our_own_settings_do_not_differ() -> None:
    assert differing(CONFIG) == []


@pytest.mark.parametrize(
    "same",
    [
        {"http_method": "post"},
        {"http_method": ""},
        {"batch_size": "300"},
        {"batch_size": 300.0},
        {"withbackfill": "true"},
        {"user_fields": ["email", "segment_events", "_uids"]},
        {"field_changes": ["email", "_uids"]},
        {"audience_events": ""},
        {"webhook_url": "HTTPS://Sync.example:443/webhooks/lytics/a1/"},
        {"do_not_retry": [], "template_id": "", "user_limit": 0, "quiet_time_of_day": None},
        {"drop_events_during_quiet_window": False, "cloudevents": True, "unknown": 1},
    ],
)
def test_settings_that_mean_the_same_do_not_differ(same: dict[str, Any]) -> None:
    assert differing({**CONFIG, **same}) == []


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("webhook_url", "https://sync.example/webhooks/lytics/b2"),
        ("webhook_url", "http://sync.example/webhooks/lytics/a1"),
        ("webhook_url", "http://[bad"),
        ("webhook_url", 7),
        ("http_method", "GET"),
        ("http_method", "PUT"),
        ("audience_events", "enters_only"),
        ("withbackfill", False),
        ("user_fields", []),
        ("user_fields", ["_uids"]),
        ("user_fields", "_uids"),
        ("field_changes", []),
        ("batch_requests", False),
        ("batch_size", 10),
        ("batch_size", "many"),
        ("batch_flush_duration", 5),
        ("worker_count", 5),
        ("do_not_retry", [401]),
        ("template_id", "t1"),
        ("user_limit", 1000),
        ("quiet_time_of_day", "22:00"),
        ("drop_events_during_quiet_window", True),
    ],
)
def test_each_other_setting_is_one_difference(key: str, value: Any) -> None:
    assert differing({**CONFIG, key: value}) == [key]
    absent = {name: one for name, one in CONFIG.items() if name != key}
    assert set(differing(absent)) <= {key}


def test_a_job_without_settings_lacks_what_lytics_would_default_otherwise() -> None:
    assert differing({}) == [
        *("webhook_url", "withbackfill", "user_fields", "field_changes"),
        *("batch_requests", "batch_size", "batch_flush_duration", "worker_count"),
    ]


@pytest.mark.parametrize(
    ("changes", "harm"),
    [
        ({"http_method": "PUT"}, Harm.NONE),
        ({"batch_size": 1000}, Harm.NONE),
        ({"batch_size": 299}, Harm.RISK),
        ({"batch_flush_duration": 2}, Harm.NONE),
        ({"batch_flush_duration": None}, Harm.RISK),
        ({"worker_count": None}, Harm.RISK),
        ({"do_not_retry": [400, 404]}, Harm.NONE),
        ({"do_not_retry": "400, 503"}, Harm.LOSS),
        ({"do_not_retry": "9" * 5000}, Harm.NONE),
        ({"user_fields": ["_uids"]}, Harm.RISK),
        ({"user_fields": ["segment_events"]}, Harm.LOSS),
        ({"quiet_time_of_day": "22:00"}, Harm.RISK),
        ({"quiet_period": 8, "drop_events_during_quiet_window": True}, Harm.LOSS),
        ({"drop_events_during_quiet_window": True}, Harm.NONE),
        ({"http_method": "DELETE"}, Harm.SILENCE),
    ],
)
def test_a_difference_says_what_it_does(changes: dict[str, Any], harm: Harm) -> None:
    assert {difference.harm for difference in OURS.differences({**CONFIG, **changes})} == {harm}


def test_a_long_value_is_shown_shortened() -> None:
    (difference,) = OURS.differences({**CONFIG, "do_not_retry": list(range(1000))})
    assert len(difference.theirs) < 130


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("https://a.example/x", "https://A.example/x/", True),
        ("https://a.example/x", "https://a.example/X", False),
        ("https://a.example/x", "https://a.example/x?y=1", False),
        ("http://[bad", "http://[bad", True),
    ],
)
def test_urls_are_compared_by_the_place_they_lead_to(one: str, other: str, same: bool) -> None:
    assert is_same_url(one, other) is same


def test_words_for_a_person_name_the_same_settings() -> None:
    words = dict(WebhookSettings(webhook_url="https://a.example", identifier_field="_id").in_words("vip"))
    assert (words["Export Fields"], words["Fields to Trigger"]) == ("Lytics ID, segment_events", "none")
    words = dict(OURS.in_words("vip"))
    assert (words["Export Fields"], words["Fields to Trigger"]) == ("_uids, segment_events", "_uids")
