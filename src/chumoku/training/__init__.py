"""Training: objectives, data, one loop, and what makes a run exact, watched and resumable."""
