"""Rotating secrets: the states that a secret passes through, and who decides what when."""
