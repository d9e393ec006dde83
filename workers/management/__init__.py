"""Commands of ``manage.py`` that send requests to ODP and therefore need the rate limit."""
