"""What runs in Celery workers: tasks, the drain, the rate limit, bisection, heartbeats."""
