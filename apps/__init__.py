"""The application layer: what authors of a ServerApp or ClientApp import. Knows no Redis."""
