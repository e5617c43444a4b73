"""Streaming sentiment and escalation for e-commerce customer service."""

__version__ = "0.1.0"
