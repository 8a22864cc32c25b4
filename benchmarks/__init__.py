"""What the product costs, measured: time for each phase, against bare tools, and memory."""
