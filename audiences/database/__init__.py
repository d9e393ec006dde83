"""PostgreSQL as this service uses it: Django's backend, with lost sessions noticed."""
