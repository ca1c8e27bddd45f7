"""Settings → a folder of results."""
