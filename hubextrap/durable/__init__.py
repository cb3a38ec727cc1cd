"""What outlives the process: files that appear whole, logs that only grow, locks, locked places."""
