"""Whether Lytics, the ledger and ODP agree about who is a member, and what makes them agree again."""
