"""Which host an account lives on."""

import pytest

from odp.regions import HOSTS, host_of, region_of

US, EU, AU = "https://api.zaius.com", "https://api.eu1.odp.optimizely.com", "https://api.au1.odp.optimizely.com"


@pytest.mark.parametrize(
    ("key", "host"),
    [
        ("W4WzcEs-ABgXorzY7h1LCQ.s3cret", US),
        ("W4WzcEs-ABgXorzY7h1LCQ-eu1.s3cret", EU),
        ("W4WzcEs-ABgXorzY7h1LCQ-au1.s3cret", AU),
        ("W4WzcEs-ABgXorzY7h1LCQ.s3cret-eu1", US),
        ("eu1-W4WzcEs.s3cret", US),
        ("public-eu1", EU),
        ("", US),
    ],
)
def test_the_public_part_of_the_key_says_the_region(key: str, host: str) -> None:
    assert host_of(api_key=key) == host
    assert HOSTS[region_of(key)] == host


def test_a_region_that_was_chosen_wins_over_the_key() -> None:
    assert host_of(api_key="public-eu1.secret", region="au") == AU


def test_a_host_that_was_given_wins_over_both_and_loses_its_last_slash() -> None:
    assert host_of(api_key="public-eu1.secret", region="au", host="http://127.0.0.1:8090/") == "http://127.0.0.1:8090"
