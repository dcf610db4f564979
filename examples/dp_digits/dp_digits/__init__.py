"""Handwritten digits with differential privacy; see server_app.py and client_app.py."""
