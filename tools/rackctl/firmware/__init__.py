"""`rackctl firmware`: what becomes of a commit before it runs on a board."""
