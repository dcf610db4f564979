"""scikit-learn's SGDClassifier by federated averaging; see server_app.py and client_app.py."""
