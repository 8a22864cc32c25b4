"""Reports that people would rather look at than read: tables, a timing plot, a topology."""
