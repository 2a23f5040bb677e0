"""Studies: arms of one recipe, trained and evaluated alike over several seeds."""
