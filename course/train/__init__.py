"""What the loop trains with: optimisers, a critic, streams of noise, metrics, saved state."""
