"""What was recorded, on one timeline for people: rerun recordings from bags, incidents and data sets."""
