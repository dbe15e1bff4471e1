"""The ablations on the tiny language model; `python -m tinylm NAME` runs one and draws it."""
