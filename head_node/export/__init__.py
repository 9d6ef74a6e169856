"""How clients reach a volume: the NBD server, the relay to another head, and an NBD client."""
