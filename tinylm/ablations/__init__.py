"""The ablations on the tiny language model, one module each: `python -m tinylm NAME` runs it and
draws its figure.
"""
