"""Who goes next: queues, and what may be wrapped around them."""
