"""Lytics' REST API: audiences, their members, people, jobs and authorizations. Reads it, and sets up our webhook job.

Each function takes a ``Client``, makes one request and returns what it found with the ``Answer``; none raises for what
Lytics sends, and none retries. Docstrings say of each fact whether Lytics documents it, we inferred it, or it is
unknown; docs/lytics-api.md has the list.
"""
