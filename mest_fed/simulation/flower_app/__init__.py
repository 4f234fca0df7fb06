"""Any Flower app on a simulated fleet: its folder, its run, what the run leaves."""
