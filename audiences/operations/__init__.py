"""What operators do: send again, release, skip, change an id, rotate keys, audit."""
