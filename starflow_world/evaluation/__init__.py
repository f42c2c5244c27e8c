"""How well a world knows its environment."""
