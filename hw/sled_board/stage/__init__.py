"""What a board's base system runs in place of a firmware: it chooses one, starts it, and watches over it."""
