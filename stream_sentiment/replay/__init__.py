"""The worker's decisions once more, from the log, beside the live ones and without touching them."""
