"""Bandits: environments, policies, exact answers and ablations, run through the shared core of
`course`.
"""
