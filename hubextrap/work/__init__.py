"""The work of a plan, in units that travel: any machine that sees the plan's place does any of them."""
