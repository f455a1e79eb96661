"""How time and memory of icm_loss grow with the batch and with the classes."""
