"""Calls from Lytics: authenticated, read, and stored as events."""
