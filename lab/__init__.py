"""The lab: a whole site on one machine, real wherever it can be."""
