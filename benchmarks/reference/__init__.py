"""The equations in their textbook form: batched, without tricks, and never imported by the package."""
