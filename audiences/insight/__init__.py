"""What people are shown: states, histories, totals, and checks of the whole path."""
