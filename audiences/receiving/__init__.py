"""A call from Lytics: told apart from strangers', read, and stored as events."""
