"""Episodes on disk, and the windows of them that training reads."""
