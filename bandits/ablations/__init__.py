"""The ablations on bandits, one module each; `python -m bandits NAME` runs one and draws it."""
