"""Rows from files and the hub, and the order in which they are seen."""
