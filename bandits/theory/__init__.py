"""The mathematics of the lessons on bandits: formulas, fixed points, recursions and exact flows.

It also holds the small trainings that follow them. The ablations compare their measurements with
these functions and draw the figures.
"""
