"""Kafka at the edge: clients, topics, dead letters, the embedded cluster."""
