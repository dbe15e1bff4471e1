"""The tiny language model: a from-scratch transformer on arithmetic, trained by the same estimators
as the bandits.
"""
