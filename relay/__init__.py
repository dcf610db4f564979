"""The SuperLink on Redis: streams, contexts, objects, runs, nodes, the Redis Grid and the submit API."""
