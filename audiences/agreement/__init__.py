"""Audits and repairs: compare the members in Lytics, in the ledger and in ODP, and correct the differences."""
