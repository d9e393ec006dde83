"""A stand-in for both vendors: an ODP that keeps state, and a sender of Lytics' calls."""
