"""The mathematics that lessons teach on bandits: formulas, fixed points, recursions, exact flows.

Nothing is trained or drawn here; the ablations measure against these functions.
"""
