"""One Prefect block per system: the only place that knows a vendor's library."""
