"""A run's student as files that need nothing of this package."""
