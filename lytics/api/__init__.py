"""Lytics' REST API: audiences, their members, people, jobs and authorizations. Reads it, and sets up our webhook job.

Each function takes a ``Client``, makes one request, and returns the objects with the ``Answer``. No function retries,
or raises because of a response. Docstrings mark each fact as documented by Lytics, inferred or unknown;
docs/lytics-api.md has the list.
"""
