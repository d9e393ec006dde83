"""What every room of the domain uses: models, encryption, database sessions, wake-ups."""
