"""What client processes do; each is a function that gets the database's URL."""
