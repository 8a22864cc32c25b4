"""Classes of rotated secrets: each an adapter between the machine and one real system."""
