"""The tools of experiments: ablations, facts, results, figures, and terminal output."""
