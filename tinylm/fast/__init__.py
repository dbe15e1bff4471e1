"""The quick path of the transformer, proved equal to the plain one."""
