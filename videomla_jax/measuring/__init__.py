"""Measurements on the device that is here, and the records of them."""
