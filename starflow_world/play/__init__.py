"""A page on the loopback address to play a learned world: server, protocol, and the page's files in page/."""
