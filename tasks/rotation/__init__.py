"""Tasks that rotate secrets: the engine that drives one of them, and what Prefect runs."""
