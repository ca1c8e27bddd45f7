"""Images without labels: a student takes over a teacher's features and relations, and nothing else."""
