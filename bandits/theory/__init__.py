"""The mathematics that lessons teach on bandits: formulas, fixed points, recursions, exact flows,
and the small trainings that follow them.

Nothing is judged or drawn here; the ablations measure against these functions.
"""
