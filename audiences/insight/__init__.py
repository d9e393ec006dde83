"""The data of pages and commands: states, histories, totals, and tests of the whole path."""
