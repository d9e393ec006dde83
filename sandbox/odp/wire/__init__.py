"""Requests, responses, scripted faults, and the observer that records requests."""
