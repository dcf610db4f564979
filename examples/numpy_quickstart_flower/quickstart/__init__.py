"""Linear regression in NumPy, trained by FedAvg."""
