"""Files of weights: reading and writing them, names in them, and filling modules from them."""
