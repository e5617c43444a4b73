"""What changes while a worker runs: rules and model, each at a window boundary (docs/live-changes.md).

`serving` is what one window is worked on with; `rules_file` and `model_bundle` look for new ones, `watch` calls them; `shadow` compares
another model silently; `changes` joins them for the worker.
"""
