"""Which host an account lives on. Keys of Europe and Asia-Pacific say so in the suffix of their public part."""

HOSTS = {
    "us": "https://api.zaius.com",
    "eu": "https://api.eu1.odp.optimizely.com",
    "au": "https://api.au1.odp.optimizely.com",
}
_SUFFIXES = {"-eu1": "eu", "-au1": "au"}


def region_of(api_key: str) -> str:
    """The region that a private key (``<public>.<secret>``) belongs to; no suffix is the United States."""
    public = api_key.partition(".")[0]
    return next((region for suffix, region in _SUFFIXES.items() if public.endswith(suffix)), "us")


def host_of(*, api_key: str, region: str = "", host: str = "") -> str:
    """The base URL for one account: ``host`` when given, else the region's, else the key's."""
    return (host or HOSTS[region or region_of(api_key)]).rstrip("/")
