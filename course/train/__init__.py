"""What the training loop uses: optimisers, a critic, random streams, metrics, saved state."""
