"""What experiments are made of: ablations, facts, results, figures, and the terminal."""
