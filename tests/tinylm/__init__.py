"""Tests of the tiny language model."""
