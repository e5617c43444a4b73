"""`stream-sentiment bench`: what the worker costs beside the model, measured in one run on this machine."""
