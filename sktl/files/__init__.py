"""What a fitted estimator is on the disk."""
