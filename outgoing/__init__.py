"""HTTP requests that we make, to whichever server: one deadline each, strict responses, errors in words."""
