"""One run's page, table and verdict."""
