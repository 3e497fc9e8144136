"""Plans of a request over several devices: profiles, costs, the choice, and what runs them."""
