"""The ablations on bandits, one module each: `python -m bandits NAME` runs it and draws
its figure.
"""
