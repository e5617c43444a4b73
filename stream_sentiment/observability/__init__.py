"""What an operator sees of a worker: metrics, health, logs. An edge: it knows nothing of the rooms it reports
about.
"""
