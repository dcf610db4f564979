"""The SuperNode: takes messages from its inbox, runs ClientApps as RQ jobs and answers."""
