"""The Kafka edge: client settings, topics, dead letters, and the embedded broker of the demo."""
