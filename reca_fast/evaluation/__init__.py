"""How good the pictures are: reconstructions with their error (`reconstruction`), and sheets of them (`grids`)."""
