"""HTTP requests of this service: one deadline per request, strict reading of responses, errors in words."""
