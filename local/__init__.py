"""A whole stack on one machine: its servers, its processes, and what is printed of them."""
