"""How well vectors of a base merge, and what of the base it depends on."""
