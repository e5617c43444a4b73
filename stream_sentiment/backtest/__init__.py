"""What would a rule file have done? The worker's own fold and rules over conversations of the past."""
