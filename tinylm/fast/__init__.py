"""The fast forward pass of the transformer. Tests check that it equals `tinylm.model`."""
