"""Commands of ``manage.py``: operators' actions and reports without a browser."""
