"""The page, tables and verdict of many runs under the same conditions."""
