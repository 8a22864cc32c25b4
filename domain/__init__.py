"""The language of the product: specs, plans, decisions, errors; no vendor and no I/O."""
