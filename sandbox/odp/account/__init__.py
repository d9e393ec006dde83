"""What one ODP account holds, and the rules by which it changes."""
