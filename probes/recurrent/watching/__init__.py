"""A model whose recurrent layers are watched, recorded or replaced while it runs."""
