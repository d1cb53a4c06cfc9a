"""A terminal browser of rollouts: `rows` finds them, `page` draws them, `screen` takes the keys."""
