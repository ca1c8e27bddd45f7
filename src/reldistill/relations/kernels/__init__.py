"""The relations once more, fast: see README.md beside this file."""
