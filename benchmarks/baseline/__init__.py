"""What a team would write first: serializers, ``bulk_create``, and one Celery task per event under a Redis lock.

Honest work with no mistakes planted: durable before it answers, in order as far as a lock can see to that, the same
web server, pool and number of slots as the bridge. No ledger, no folding, no pace, no recovery.
"""
