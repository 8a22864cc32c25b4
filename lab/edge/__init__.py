"""The stand-in for the ingress controller and for the applications' containers."""
