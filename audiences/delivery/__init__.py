"""From stored events to ODP: claim, fold, settle, making audiences, backoff."""
