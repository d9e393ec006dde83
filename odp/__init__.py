"""The wire of ODP: client, outcomes and definitions. Knows no models."""
