"""FedBuff on nodes some of which are slow; see server_app.py and client_app.py."""
