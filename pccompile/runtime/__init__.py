"""What runs when a compiled model is called: module, autograd function, loaded program, model state, losses."""
