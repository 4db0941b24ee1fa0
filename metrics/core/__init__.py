"""What every metric rests on: the mixture of members, ranking, bins and streaming states."""
