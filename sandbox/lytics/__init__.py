"""A stand-in for the Lytics job that calls a webhook when a customer enters or leaves an audience."""
