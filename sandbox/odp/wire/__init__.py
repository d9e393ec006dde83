"""What travels: requests, responses, scripted faults, and the observer that remembers requests."""
