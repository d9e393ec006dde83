"""The front page, *Now*: its numbers, alerts and charts."""
