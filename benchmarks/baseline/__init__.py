"""What a team would write first to store Lytics' calls: serializers and ``bulk_create`` in one transaction.

It has no planted mistakes: it is durable before it responds, and runs on the same web server as the bridge. It delivers
nothing. One floor of *ingest* is a ratio to the events per second that the baseline stores.
"""
