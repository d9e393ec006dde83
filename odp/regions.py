"""The host of an ODP account. The public part of a key ends with its region in Europe and Asia-Pacific."""

HOSTS = {
    "us": "https://api.zaius.com",
    "eu": "https://api.eu1.odp.optimizely.com",
    "au": "https://api.au1.odp.optimizely.com",
}
_SUFFIXES = {"-eu1": "eu", "-au1": "au"}


def region_of(api_key: str) -> str:
    """The region of a private key (``<public>.<secret>``). A key without a suffix is of the United States."""
    public = api_key.partition(".")[0]
    return next((region for suffix, region in _SUFFIXES.items() if public.endswith(suffix)), "us")


def host_of(*, api_key: str, region: str = "", host: str = "") -> str:
    """The base URL of an account: ``host`` if given, else that of ``region`` if given, else that of the key."""
    return (host or HOSTS[region or region_of(api_key)]).rstrip("/")
