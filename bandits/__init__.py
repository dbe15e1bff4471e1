"""Bandits: environments, policies, exact results and ablations, built on the core of `course`."""
