"""The same work as in ../../app.py, on Flower."""
