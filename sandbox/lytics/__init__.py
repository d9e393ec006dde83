"""A stand-in for the Lytics job that calls a webhook when somebody enters or leaves an audience."""
