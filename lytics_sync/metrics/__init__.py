"""``GET /metrics`` for Prometheus: states from PostgreSQL, totals from Redis, the same from every web process."""
