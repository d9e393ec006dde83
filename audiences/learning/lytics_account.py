"""Experiments on Lytics' API. They only read, and need an API token of the install."""

from collections.abc import Iterator
from typing import Any

from audiences.learning.experiments import Experiment, Found, NotAnswered, plain_name, shape
from audiences.learning.lab import CUSTOMER, Lab
from lytics.api.audiences import audience, audiences
from lytics.api.authorizations import authorizations
from lytics.api.client import Client
from lytics.api.jobs import Job, jobs
from lytics.api.outcomes import Answer
from lytics.api.people import person

# Seconds between two requests. Lytics documents no rate.
PAUSE_SECONDS = 1.0


def _client(lab: Lab) -> Client:
    if lab.lytics is None:
        raise NotAnswered("The install has no Lytics API token")
    lab.clock.sleep(PAUSE_SECONDS)
    return lab.lytics


def _must_be_ok(answer: Answer) -> None:
    if not answer.is_ok:
        raise NotAnswered(f"Lytics answered {answer.status}")


def _job_config(lab: Lab) -> Iterator[Found]:
    found = jobs(_client(lab))
    _must_be_ok(found.answer)
    if not found.items:
        raise NotAnswered("Lytics has no webhook job yet")
    ours = [job for job in found.items if lab.webhook_url and _names(job.config, lab.webhook_url)]
    yield Found("job_of_install", "found" if ours else "missing", f"{len(found.items)} webhook jobs")
    job: Job = (ours or found.items)[0]
    yield Found("job_config", plain_name(job.state.replace("-", "_")), config_words(job.config))
    yield Found("job_shape", "read", shape({name: value for name, value in job.fields.items() if name != "config"}))


def _names(config: Any, url: str) -> bool:
    if isinstance(config, dict):
        return any(_names(value, url) for value in config.values())
    if isinstance(config, list):
        return any(_names(value, url) for value in config)
    return isinstance(config, str) and config.startswith(url)


def config_words(config: Any) -> str:
    """The settings of a job: switches and numbers with their values, of anything else only the type."""
    known = {
        plain_name(name): str(value).lower() if isinstance(value, bool | int | float) else shape(value)
        for name, value in sorted(config.items())
    }
    return ", ".join(f"{name}={value}" for name, value in known.items())


def _authorizations(lab: Lab) -> Iterator[Found]:
    found = authorizations(_client(lab))
    _must_be_ok(found.answer)
    if not found.items:
        raise NotAnswered("Lytics has no authorization yet")
    shown = any("header" in name and value for each in found.items for name, value in _every(each.fields))
    shapes = sorted({shape(dict(each.fields)) for each in found.items})
    yield Found("authorization_headers", "shown" if shown else "hidden", "; ".join(shapes[:3]))


def _every(part: Any) -> Iterator[tuple[str, Any]]:
    for name, value in part.items():
        yield name, value
        if isinstance(value, dict):
            yield from _every(value)


def _errors(lab: Lab) -> Iterator[Found]:
    nobody = f"{CUSTOMER}-nobody"
    missing = audience(_client(lab), nobody).answer
    yield Found("missing_audience", str(missing.status or ""), shape(missing.json))
    unknown = person(_client(lab), "_id", nobody).answer
    yield Found("missing_person", str(unknown.status or ""), f"{unknown.outcome}: {shape(unknown.json)}")


def _sizes(lab: Lab) -> Iterator[Found]:
    found = audiences(_client(lab))
    _must_be_ok(found.answer)
    sized = sum(each.size is not None for each in found.items)
    answer = "all" if sized == len(found.items) else "some" if sized else "none"
    yield Found("audience_sizes", answer, f"{sized} of {len(found.items)} audiences have a size")


EXPERIMENTS = (
    Experiment(
        {
            "job_of_install": "Lytics: does a webhook job call the URL of this install?",
            "job_config": "Lytics: which settings has a webhook job as it is stored, and in which state is it?",
            "job_shape": "Lytics: which other fields has a job?",
        },
        _job_config,
    ),
    Experiment({"authorization_headers": "Lytics: does it show the headers of an authorization?"}, _authorizations),
    Experiment(
        {
            "missing_audience": "Lytics: how is an audience answered that doesn't exist?",
            "missing_person": "Lytics: how is a person answered who doesn't exist?",
        },
        _errors,
    ),
    Experiment({"audience_sizes": "Lytics: do audiences come with their sizes?"}, _sizes),
)
