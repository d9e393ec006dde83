"""A whole stack on one machine: servers, processes, and the output of the commands."""
