"""XGBoost by bagging; see server_app.py and client_app.py."""
