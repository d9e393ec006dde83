"""The wire of Lytics: the body of a webhook call, read into facts. Knows no models."""
