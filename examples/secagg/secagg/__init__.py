"""Logistic regression on scikit-learn's breast cancer data, by secure aggregation."""
